package lvm

import (
	"encoding/binary"
	"fmt"
	"strings"

	"yester/internal/readertest"
	"yester/volume"
)

// uuid returns an ID made of one character.
func uuid(c byte) string {
	s, _ := dashed(strings.Repeat(string(c), idLen))
	return s
}

// synthPV is a physical volume to be made by hand.
type synthPV struct {
	uuid  string
	size  int
	areas []region
	text  string
	at    uint64 // where the text begins in its area; 0: behind the header
}

const testArea = 16 << 10 // bytes of a metadata area

func newPV(c byte, size int, text string) synthPV {
	return synthPV{uuid: uuid(c), size: size, areas: []region{{4096, testArea}}, text: text}
}

// disk makes it: label, header, and the text in each area.
func (p synthPV) disk() readertest.Bytes {
	le := binary.LittleEndian
	d := make([]byte, p.size)
	label := d[sectorSize:][:sectorSize]
	copy(label, labelMagic)
	le.PutUint64(label[labelOffSector:], 1)
	le.PutUint32(label[labelOffHeader:], labelEnd)
	copy(label[labelOffType:], labelType)
	h := label[labelEnd:]
	copy(h, strings.ReplaceAll(p.uuid, "-", ""))
	le.PutUint64(h[pvOffSize:], uint64(p.size))
	le.PutUint64(h[pvOffAreas:], 1<<20)
	pos := pvOffAreas + 2*locnSize
	for _, a := range p.areas {
		le.PutUint64(h[pos:], a.off)
		le.PutUint64(h[pos+8:], a.size)
		pos += locnSize
		b := d[a.off:][:a.size]
		copy(b[mdaOffMagic:], mdaMagic)
		le.PutUint32(b[mdaOffVersion:], mdaVersion)
		le.PutUint64(b[mdaOffStart:], a.off)
		le.PutUint64(b[mdaOffSize:], a.size)
		if p.text != "" {
			text := []byte(p.text + "\x00")
			at := max(p.at, mdaHeaderSize)
			n := copy(b[at:], text)
			copy(b[mdaHeaderSize:], text[n:])
			le.PutUint64(b[mdaOffLocn+rawOffStart:], at)
			le.PutUint64(b[mdaOffLocn+rawOffSize:], uint64(len(text)))
			le.PutUint32(b[mdaOffLocn+rawOffCRC:], checksum(crcInit, text))
		}
		fixHeader(b)
	}
	fixLabel(d)
	return d
}

func fixLabel(d []byte) {
	label := d[sectorSize:][:sectorSize]
	binary.LittleEndian.PutUint32(label[labelOffCRC:], checksum(crcInit, label[labelOffHeader:]))
}

func fixHeader(b []byte) {
	binary.LittleEndian.PutUint32(b[mdaOffCRC:], checksum(crcInit, b[mdaOffMagic:mdaHeaderSize]))
}

// vgText is the metadata of a group of extents of 4 KiB on physical volumes of 64
// extents each, which begin at 1 MiB.
func vgText(name string, seqno int, pvs []string, lvs string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "contents = \"Text Format Volume Group\"\nversion = 1\n%s {\nid = %q\nseqno = %d\nformat = \"lvm2\" # informational\n"+
		"status = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\nextent_size = 8\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\nphysical_volumes {\n", name, uuid('V'), seqno)
	for i, id := range pvs {
		fmt.Fprintf(&b, "pv%d {\nid = %q\ndevice = \"/dev/sda\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = 6144\npe_start = 2048\npe_count = 64\n}\n", i, id)
	}
	fmt.Fprintf(&b, "}\nlogical_volumes {\n%s}\n}\n", lvs)
	return b.String()
}

// lvText is one logical volume; flags are further words of its status.
func lvText(name string, id byte, status string, segments ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s {\nid = %q\nstatus = [\"READ\", \"WRITE\"%s]\nflags = []\nsegment_count = %d\n", name, uuid(id), status, len(segments))
	for i, s := range segments {
		fmt.Fprintf(&b, "segment%d {\n%s\n}\n", i+1, s)
	}
	return b.String() + "}\n"
}

const visible = `, "VISIBLE"`

func segText(start, count int, rest string) string {
	return fmt.Sprintf("start_extent = %d\nextent_count = %d\n%s", start, count, rest)
}

func linear(start, count int, area string, at int) string {
	return segText(start, count, fmt.Sprintf("type = \"striped\"\nstripe_count = 1\nstripes = [\n%q, %d\n]", area, at))
}

// devices names disks.
func devices(disks ...readertest.Bytes) []volume.Device {
	var devs []volume.Device
	for i, d := range disks {
		devs = append(devs, volume.Device{Name: fmt.Sprintf("disk%d", i), Reader: d})
	}
	return devs
}

// everything is a group on two physical volumes with volumes of each kind.
var everything = strings.Join([]string{
	lvText("lin", '1', visible, linear(0, 2, "pv0", 0), linear(2, 2, "pv1", 0)),
	lvText("mir", '2', visible, segText(0, 2, "type = \"mirror\"\nmirror_count = 2\nregion_size = 8\nmirrors = [\n\"mir_mimage_0\", 0,\n\"mir_mimage_1\", 0\n]")),
	lvText("mir_mimage_0", '3', "", linear(0, 2, "pv0", 2)),
	lvText("mir_mimage_1", '4', "", linear(0, 2, "pv1", 2)),
	lvText("r1", '5', visible, segText(0, 2, "type = \"raid1\"\ndevice_count = 2\nregion_size = 8\nraids = [\n\"r1_rmeta_0\", \"r1_rimage_0\",\n\"r1_rmeta_1\", \"r1_rimage_1\"\n]")),
	lvText("r1_rmeta_0", '6', "", linear(0, 1, "pv0", 4)),
	lvText("r1_rimage_0", '7', "", linear(0, 2, "pv0", 5)),
	lvText("r1_rmeta_1", '8', "", linear(0, 1, "pv1", 4)),
	lvText("r1_rimage_1", '9', "", linear(0, 2, "pv1", 5)),
	lvText("origin", 'a', visible, linear(0, 2, "pv0", 7)),
	lvText("snap", 'b', "", linear(0, 2, "pv0", 9)),
	lvText("snapshot0", 'c', "", segText(0, 2, "type = \"snapshot\"\nchunk_size = 8\norigin = \"origin\"\ncow_store = \"snap\"")),
	lvText("pool", 'd', visible, segText(0, 2, "type = \"thin-pool+CROP_METADATA\"\nmetadata = \"pool_tmeta\"\npool = \"pool_tdata\"\ntransaction_id = 1\nchunk_size = 128\ndiscards = \"passdown\"\nzero_new_blocks = 1")),
	lvText("pool_tmeta", 'e', "", linear(0, 1, "pv0", 11)),
	lvText("pool_tdata", 'f', "", linear(0, 2, "pv1", 7)),
	lvText("thin", 'g', visible, segText(0, 4, "type = \"thin\"\nthin_pool = \"pool\"\ntransaction_id = 0\ndevice_id = 1")),
	lvText("r0", 'h', visible, segText(0, 4, "type = \"raid0\"\nstripe_count = 2\nstripe_size = 8\nraid0_lvs = [\n\"r0_rimage_0\",\n\"r0_rimage_1\"\n]")),
	lvText("r0_rimage_0", 'i', "", linear(0, 2, "pv0", 12)),
	lvText("r0_rimage_1", 'j', "", linear(0, 2, "pv1", 9)),
	lvText("holes", 'k', visible, linear(0, 1, "pv0", 14), segText(1, 3, "type = \"zero\""), linear(4, 1, "pv0", 15)),
	lvText("broken", 'l', visible, linear(0, 1, "pv0", 16), segText(1, 1, "type = \"error\"")),
}, "")
