package ewf

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// volume is what the volume, disk and data sections say of the disk.
type volume struct {
	media    byte
	perChunk uint32 // sectors
	sector   uint32 // bytes
	sectors  uint64
	guid     [16]byte
}

func (v *volume) chunk() int64 { return int64(v.perChunk) * int64(v.sector) }

// meta is everything that the segments say about themselves.
type meta struct {
	volume
	seen      bool // the volume section has been read
	size      int64
	md5, sha1 []byte
	tables    []table
	chunks    int64 // in all tables so far
	info      imageformats.Info
	header2   bool // the better header has been read
	lastRun   section
	pending   int // index in tables + 1 of the table that a table2 would copy
}

func (m *meta) warnf(format string, args ...any) {
	m.info.Warnings = append(m.info.Warnings, fmt.Sprintf(format, args...))
}

// readSegment reads the sections of s.
func (m *meta) readSegment(ctx context.Context, s *segment) (more bool, err error) {
	if err := s.readHeader(ctx); err != nil {
		return false, err
	}
	m.lastRun, m.pending = section{}, 0
	return s.walk(ctx, func(sec section) error {
		switch sec.kind {
		case "volume", "disk", "data":
			return m.readVolume(ctx, s, sec)
		case "header", "header2":
			return m.warn(m.readHeader(ctx, s, sec))
		case "sectors":
			m.lastRun = sec
		case "table", "table2":
			return m.addTable(ctx, s, sec)
		case "hash", "digest":
			return m.warn(m.readDigest(ctx, s, sec))
		case "error2":
			return m.warn(m.readErrors(ctx, s, sec))
		case "incomplete":
			m.warnf("%s: the acquisition was not completed", strings.TrimSuffix(s.prefix(), ": "))
		}
		return nil
	})
}

// warn turns damage in what isn't needed to read the disk into a warning.
func (m *meta) warn(err error) error {
	if err == nil || !errors.Is(err, ondisk.ErrCorrupt) {
		return err
	}
	m.warnf("%v", err)
	return nil
}

// readVolume reads the section that describes the disk, or a copy of it: each
// further segment has one, as proof that it belongs to the set, and many writers
// put one behind the tables.
func (m *meta) readVolume(ctx context.Context, s *segment, sec section) error {
	if n := sec.end - sec.data(); n < volSize {
		if n == volSizeSMART {
			return ondisk.Unsupportedf("ewf", s.prefix()+sec.kind, sec.at, "SMART format (.s01)")
		}
		return s.corrupt(sec.kind, sec.at, "%d bytes", n)
	}
	var b [volSize]byte
	if err := s.readSummed(ctx, b[:], sec.data(), volSum, sec.kind); err != nil {
		return m.warn(err) // a copy will do
	}
	v := volume{media: b[volMedia], perChunk: le.Uint32(b[volPerChunk:]), sector: le.Uint32(b[volSector:]),
		sectors: le.Uint64(b[volSectors:]), guid: [16]byte(b[volGUID:])}
	if m.seen {
		if v.guid != m.guid || v.perChunk != m.perChunk || v.sector != m.sector {
			return s.corrupt(sec.kind, sec.at, "it belongs to another set: id %s, %d × %d bytes in a chunk; the first segment has id %s, %d × %d",
				uuid(v.guid), v.perChunk, v.sector, uuid(m.guid), m.perChunk, m.sector)
		}
		return nil
	}
	switch v.sector {
	case 512, 1024, 2048, 4096:
	default:
		return ondisk.Unsupportedf("ewf", s.prefix()+"bytes per sector", sec.data()+volSector, "%d", v.sector)
	}
	if v.perChunk == 0 || uint64(v.perChunk)*uint64(v.sector) > maxChunk {
		return s.corrupt("sectors per chunk", sec.data()+volPerChunk, "%d sectors of %d bytes", v.perChunk, v.sector)
	}
	if v.sectors > math.MaxInt64/uint64(v.sector) {
		return s.corrupt("sectors", sec.data()+volSectors, "%#x", v.sectors)
	}
	m.volume, m.seen = v, true
	m.size = int64(v.sectors * uint64(v.sector))
	m.info.Format, m.info.Variant = "ewf", mediaTypes[v.media]
	m.info.Size, m.info.BlockSize, m.info.SectorSize = m.size, v.chunk(), int(v.sector)
	if v.guid != [16]byte{} {
		m.info.ID = uuid(v.guid)
	}
	return nil
}

// readDigest reads the digests of the whole disk. One that is damaged can't be
// compared with, which is no reason not to read the disk.
func (m *meta) readDigest(ctx context.Context, s *segment, sec section) error {
	n, sum := hashSize, hashSum
	if sec.kind == "digest" {
		n, sum = digestSize, digestSum
	}
	if sec.end-sec.data() < int64(n) {
		return s.corrupt(sec.kind, sec.at, "%d bytes", sec.end-sec.data())
	}
	b := make([]byte, n)
	if err := s.readSummed(ctx, b, sec.data(), sum, sec.kind); err != nil {
		return err
	}
	if md5 := b[hashMD5 : hashMD5+16]; !zero(md5) { // in both sections at the same place
		if m.md5 != nil && !bytes.Equal(md5, m.md5) {
			m.warnf("%v", s.corrupt(sec.kind, sec.at, "MD5 %x, elsewhere %x", md5, m.md5))
		}
		m.md5 = md5
	}
	if sec.kind == "digest" {
		if sha1 := b[digestSHA1 : digestSHA1+20]; !zero(sha1) {
			m.sha1 = sha1
		}
	}
	return nil
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// toldErrors is how many unreadable ranges are told one by one.
const toldErrors = 16

// readErrors tells where the acquired medium could not be read: the disk has what
// the acquiring program put there, zeros as a rule.
func (m *meta) readErrors(ctx context.Context, s *segment, sec section) error {
	var h [errorHeader]byte
	if sec.end-sec.data() < errorHeader {
		return s.corrupt("error2", sec.at, "%d bytes", sec.end-sec.data())
	}
	if err := s.readSummed(ctx, h[:], sec.data(), errorSum, "error2"); err != nil {
		return err
	}
	n := int64(le.Uint32(h[errorCount:]))
	if n > maxErrors || n*errorEntry+4 > sec.end-sec.data()-errorHeader {
		return s.corrupt("error2", sec.at, "%d entries in %d bytes", n, sec.end-sec.at)
	}
	b := make([]byte, n*errorEntry+4)
	if err := s.readSummed(ctx, b, sec.data()+errorHeader, int(n*errorEntry), "error2"); err != nil {
		return err
	}
	var total uint64
	var list []string
	for i := range n {
		first, count := le.Uint32(b[i*errorEntry:]), le.Uint32(b[i*errorEntry+4:])
		total += uint64(count)
		switch {
		case i < toldErrors:
			list = append(list, fmt.Sprintf("%d+%d", first, count))
		case i == toldErrors:
			list = append(list, "…")
		}
	}
	if n > 0 {
		m.warnf("the medium could not be read at %d places when it was acquired (%d sectors; first sector + count: %s)", n, total, strings.Join(list, ", "))
	}
	return nil
}

// readHeader reads who acquired the disk, and when.
func (m *meta) readHeader(ctx context.Context, s *segment, sec section) error {
	if m.header2 || sec.kind == "header" && m.info.Creator != "" {
		return nil
	}
	n := sec.end - sec.data()
	if n > maxHeader {
		return s.corrupt(sec.kind, sec.at, "%d bytes", n)
	}
	packed := make([]byte, n)
	if err := s.read(ctx, packed, sec.data(), sec.kind); err != nil {
		return err
	}
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return s.corrupt(sec.kind, sec.at, "%v", err)
	}
	b, err := io.ReadAll(io.LimitReader(z, maxHeader+1))
	if err != nil || len(b) > maxHeader {
		return s.corrupt(sec.kind, sec.at, "%d bytes unpacked, %v", len(b), err)
	}
	text := string(b)
	if sec.kind == "header2" {
		text, m.header2 = decodeUTF16(b), true
	}
	values := headerValues(text)
	m.info.Created = acquired(values["m"])
	m.info.Creator = strings.TrimSpace(printable(values["av"]))
	if ov := strings.TrimSpace(printable(values["ov"])); ov != "" {
		m.info.Creator = strings.TrimSpace(m.info.Creator + " (" + ov + ")")
	}
	return nil
}

// headerValues returns the values of the "main" category: its second line names
// them, its third has them, separated by tabs.
func headerValues(text string) map[string]string {
	lines := strings.Split(strings.ReplaceAll(text, "\r", ""), "\n")
	values := make(map[string]string)
	for i := 0; i+2 < len(lines); i++ {
		if lines[i] != "main" {
			continue
		}
		data := strings.Split(lines[i+2], "\t")
		for k, key := range strings.Split(lines[i+1], "\t") {
			if k < len(data) {
				values[key] = data[k]
			}
		}
		break
	}
	return values
}

// acquired reads a date: seconds since 1970 in header2, "2026 11 21 16 8 7" in
// header, of a zone that isn't told; UTC is assumed.
func acquired(s string) time.Time {
	if sec, err := strconv.ParseUint(s, 10, 33); err == nil && sec > 0 {
		return time.Unix(int64(sec), 0).UTC()
	}
	if t, err := time.Parse("2006 1 2 15 4 5", s); err == nil && t.Unix() > 0 {
		return t
	}
	return time.Time{}
}

func decodeUTF16(b []byte) string {
	var order binary.ByteOrder = binary.LittleEndian
	if len(b) >= 2 && b[0] == 0xfe && b[1] == 0xff {
		order = binary.BigEndian
	}
	u := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		if c := order.Uint16(b); c != 0xfeff {
			u = append(u, c)
		}
	}
	return string(utf16.Decode(u))
}

// printable drops what isn't printable ASCII.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}

func uuid(id [16]byte) string {
	s := hex.EncodeToString(id[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// newSegment returns segment number of the set.
func newSegment(file block.Reader, name string, number int) *segment {
	return &segment{file: file, name: name, number: number}
}
