package vmdk

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"

	"yester/internal/ondisk"
)

const (
	// maxDescriptor bounds a descriptor, bytes: that of a thousand extents has
	// less than a tenth of it, and QEMU reads no more either.
	maxDescriptor = 1 << 20
	// maxExtents bounds the extents of one disk: at 2 GiB each, the most that a
	// split one has, they make 8 TiB; VMware splits disks of up to 2 TiB.
	maxExtents = 4096
)

// noParent is the parentCID of a disk that stands alone ([VDF] "The Header").
const noParent = 0xffffffff

// descriptor is the text that says what a disk is made of.
type descriptor struct {
	cid, parentCID uint32
	createType     string
	parentHint     string
	extents        []extentLine
	sectors        uint64 // of all extents
}

// extentLine is one line of the extent description.
type extentLine struct {
	access  string // RW, RDONLY, NOACCESS
	sectors uint64
	kind    string // FLAT, SPARSE, ZERO, VMFS, VMFSSPARSE, SESPARSE, …
	file    string // decoded to UTF-8
	offset  uint64 // sectors into file, flat extents only
	start   uint64 // first sector on the disk
	at      int64  // byte offset of the line in the text, for messages
}

// signatures are the first lines of descriptors, in lower case. VirtualBox knows
// the second one too.
var signatures = []string{"# disk descriptorfile", "# disk descriptor file"}

// looksLikeDescriptor reports whether b, the start of a file, may be that of a
// descriptor: cheap, and right for nearly all files that are none.
func looksLikeDescriptor(b []byte) (signed, possible bool) {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		line = bytes.ToLower(bytes.TrimSpace(line))
		for _, s := range signatures {
			if string(line) == s {
				return true, true
			}
		}
		switch {
		case len(line) == 0, line[0] == '#' && utf8.Valid(line):
		case bytes.HasPrefix(line, []byte("version")):
			return false, true
		default:
			return false, false
		}
		b = rest
	}
	return false, false
}

// parseDescriptor reads the text b, which lies at base in its file.
func parseDescriptor(b []byte, base int64) (*descriptor, error) {
	d := &descriptor{cid: noParent, parentCID: noParent}
	decode := func(s string) (string, error) { return s, nil }
	seen := map[string]bool{}
	at := base
	b, _, _ = bytes.Cut(b, []byte{0})
	for raw := range bytes.Lines(b) {
		lineAt := at
		at += int64(len(raw))
		line := strings.TrimSpace(strings.TrimPrefix(string(raw), "\xef\xbb\xbf"))
		if line == "" || line[0] == '#' {
			continue
		}
		if access, rest, ok := strings.Cut(line, " "); ok && isAccess(access) {
			e, err := parseExtent(access, rest, lineAt)
			if err != nil {
				return nil, err
			}
			if len(d.extents) == maxExtents {
				return nil, ondisk.Unsupportedf("vmdk", "descriptor", lineAt, "more than %d extents", maxExtents)
			}
			if e.file, err = decode(e.file); err != nil {
				return nil, err
			}
			if e.start = d.sectors; e.sectors > maxSectors-d.sectors {
				return nil, ondisk.Corruptf("vmdk", "extent line", lineAt, "%d sectors after %d: too large", e.sectors, d.sectors)
			}
			d.sectors += e.sectors
			d.extents = append(d.extents, e)
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if !ok || seen[key] {
			continue // the first of two counts, as for VMware's and QEMU's readers
		}
		seen[key] = true
		value = unquote(strings.TrimSpace(value))
		if key == "encoding" {
			decode = encoding(value, lineAt)
			continue
		}
		if err := d.set(key, value, lineAt, decode); err != nil {
			return nil, err
		}
	}
	switch {
	case !seen["createtype"]:
		return nil, ondisk.Corruptf("vmdk", "descriptor", base, "no createType")
	case len(d.extents) == 0:
		return nil, ondisk.Corruptf("vmdk", "descriptor", base, "no extents")
	}
	return d, nil
}

// set takes one setting.
func (d *descriptor) set(key, value string, at int64, decode func(string) (string, error)) (err error) {
	switch key {
	case "version":
		if n, err := strconv.ParseUint(value, 10, 32); err != nil || n < 1 || n > maxVersion {
			return ondisk.Unsupportedf("vmdk", "descriptor", at, "version %.20q", value)
		}
	case "cid":
		d.cid, err = parseCID(key, value, at)
	case "parentcid":
		d.parentCID, err = parseCID(key, value, at)
	case "createtype":
		d.createType = value
		if what, ok := deviceTypes[strings.ToLower(value)]; ok {
			return ondisk.Unsupportedf("vmdk", "createType", at, "%s: the disk lies on %s, not in files", value, what)
		}
	case "parentfilenamehint":
		d.parentHint, err = decode(value)
	case "isnativesnapshot":
		if strings.EqualFold(value, "yes") {
			return ondisk.Unsupportedf("vmdk", "isNativeSnapshot", at, "the parent's data are kept by a storage array")
		}
	case "ddb.iofilters":
		if strings.Contains(value, "vmwarevmcrypt") {
			return ondisk.Unsupportedf("vmdk", "ddb.iofilters", at, "encryption (%.40s)", value)
		}
	default:
		if strings.HasPrefix(key, "encryption") || strings.Contains(key, "keysafe") {
			return ondisk.Unsupportedf("vmdk", "descriptor", at, "encryption (%.40q)", key)
		}
	}
	return err
}

// deviceTypes are the create types of disks that are no files ([VDF] "createType").
var deviceTypes = map[string]string{
	"fulldevice":                    "a physical disk",
	"partitioneddevice":             "partitions of a physical disk",
	"vmfsraw":                       "a raw device",
	"vmfsrdm":                       "a raw device mapping",
	"vmfsrawdevicemap":              "a raw device mapping",
	"vmfsrdmp":                      "a raw device mapping",
	"vmfspassthroughrawdevicemap":   "a raw device mapping",
	"vmfspassthroughrawdevicemap64": "a raw device mapping",
}

func isAccess(s string) bool { return s == "RW" || s == "RDONLY" || s == "NOACCESS" }

// parseExtent reads what follows the access mode: sectors, type, and for all but
// ZERO a quoted file name, which flat extents follow up with an offset. What
// comes behind (a partition's id, a device's) is about physical disks.
func parseExtent(access, rest string, at int64) (extentLine, error) {
	e := extentLine{access: access, at: at}
	bad := func(msg string, args ...any) (extentLine, error) {
		return e, ondisk.Corruptf("vmdk", "extent line", at, msg, args...)
	}
	sectors, rest, _ := strings.Cut(strings.TrimLeft(rest, " \t"), " ")
	n, err := strconv.ParseUint(sectors, 10, 64)
	if err != nil || n == 0 || n > maxSectors {
		return bad("size of %.24q sectors", sectors)
	}
	e.sectors = n
	e.kind, rest, _ = strings.Cut(strings.TrimLeft(rest, " \t"), " ")
	e.kind = strings.ToUpper(strings.TrimSpace(e.kind))
	rest = strings.TrimLeft(rest, " \t")
	switch e.kind {
	case "ZERO":
		return e, nil
	case "FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE":
	case "VMFSRDM", "VMFSRAW":
		return e, ondisk.Unsupportedf("vmdk", "extent line", at, "type %s: the data lie on a raw device, not in a file", e.kind)
	default:
		return e, ondisk.Unsupportedf("vmdk", "extent line", at, "type %.20q", e.kind)
	}
	if access == "NOACCESS" && rest == "" {
		return e, nil
	}
	if !strings.HasPrefix(rest, `"`) {
		return bad("no file name")
	}
	var ok bool
	if e.file, rest, ok = strings.Cut(rest[1:], `"`); !ok || e.file == "" {
		return bad("no file name")
	}
	if isDevice(e.file) {
		return e, ondisk.Unsupportedf("vmdk", "extent line", at, "%.80q is a device, not a file", e.file)
	}
	if f := strings.Fields(rest); len(f) > 0 && (e.kind == "FLAT" || e.kind == "VMFS") {
		if e.offset, err = strconv.ParseUint(f[0], 10, 64); err != nil || e.offset > maxSectors {
			return bad("offset of %.24q sectors", f[0])
		}
	}
	return e, nil
}

// isDevice reports whether a file's name is that of a device, of Windows or Unix.
func isDevice(name string) bool {
	return strings.HasPrefix(name, `\\.\`) || strings.HasPrefix(name, "/dev/") || strings.HasPrefix(name, "/vmfs/devices/")
}

func parseCID(key, value string, at int64) (uint32, error) {
	n, err := strconv.ParseUint(value, 16, 32)
	if err != nil {
		return 0, ondisk.Corruptf("vmdk", key, at, "%.20q is no hexadecimal number of 32 bits", value)
	}
	return uint32(n), nil
}

func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' {
		if i := strings.IndexByte(s[1:], '"'); i >= 0 {
			return s[1 : 1+i]
		}
	}
	return s
}

// encoding returns the decoder of a descriptor's strings. Its name is that of a
// code page as ICU writes it ("windows-1252", "GBK"). Text that is UTF-8 all the
// same stays what it is: writers lie about it when a host's locale changes.
func encoding(name string, at int64) func(string) (string, error) {
	enc, err := htmlindex.Get(strings.TrimSpace(name))
	return func(s string) (string, error) {
		if utf8.ValidString(s) {
			return s, nil
		}
		if err != nil {
			return "", ondisk.Unsupportedf("vmdk", "encoding", at, "%.40q", name)
		}
		out, derr := enc.NewDecoder().String(s)
		if derr != nil {
			return "", ondisk.Corruptf("vmdk", "encoding", at, "%.80q is not in %.40q: %v", s, name, derr)
		}
		return out, nil
	}
}

// cidText is how an Info shows a content id.
func cidText(cid uint32) string { return fmt.Sprintf("%08x", cid) }
