package layout

import (
	"bytes"
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"

	"yester/internal/ondisk"
)

// VMX is what a VMware machine's configuration file says.
type VMX struct {
	Name string // displayName
	UUID string // uuid.bios
	// Disks that are present, in the order of their controllers.
	Disks []Disk
}

// maxEntries bounds the settings of a .vmx or .vmsd file: large ones have some
// thousands.
const maxEntries = 1 << 16

// ParseVMX reads a .vmx file.
func ParseVMX(data []byte) (VMX, error) {
	d, err := parseDict("vmx", data)
	if err != nil {
		return VMX{}, err
	}
	v := VMX{Name: d.get("displayname"), UUID: d.get("uuid.bios")}
	for key, file := range d {
		node, ok := strings.CutSuffix(key, ".filename")
		if _, isDisk := nodeRank(node); !ok || !isDisk || file == "" {
			continue
		}
		if p := d.get(node + ".present"); p != "" && !strings.EqualFold(p, "true") {
			continue
		}
		if !isHardDisk(d.get(node+".devicetype"), file) {
			continue
		}
		v.Disks = append(v.Disks, Disk{Node: node, File: file, Field: node + ".fileName"})
	}
	if len(v.Disks) > maxDisks {
		return VMX{}, corrupt("vmx", "fileName", "%d disks", len(v.Disks))
	}
	slices.SortFunc(v.Disks, func(a, b Disk) int { return compareNodes(a.Node, b.Node) })
	return v, nil
}

// isHardDisk tells disks from CD drives, floppies and devices passed through.
func isHardDisk(deviceType, file string) bool {
	switch t := strings.ToLower(deviceType); {
	case strings.Contains(t, "cdrom"), strings.Contains(t, "atapi"), strings.Contains(t, "passthru"):
		return false
	case strings.Contains(t, "disk"): // scsi-hardDisk, ata-hardDisk, rawDisk
		return true
	case t == "": // a hard disk, unless the file is none
		switch strings.ToLower(file) {
		case "auto detect", "emptybackingstring":
			return false
		}
		switch strings.ToLower(path.Ext(file)) {
		case ".iso", ".flp":
			return false
		}
		return true
	}
	return strings.HasSuffix(strings.ToLower(file), ".vmdk")
}

// controllers are the kinds of controllers, in the order in which their disks
// count.
var controllers = []string{"scsi", "sata", "ide", "nvme"}

// nodeRank takes a place such as "scsi0:0" apart: the kind's rank, the
// controller's number, the unit's.
func nodeRank(node string) (rank [3]int, ok bool) {
	for i, kind := range controllers {
		rest, found := strings.CutPrefix(node, kind)
		if !found {
			continue
		}
		bus, unit, found := strings.Cut(rest, ":")
		b, err1 := strconv.ParseUint(bus, 10, 8)
		u, err2 := strconv.ParseUint(unit, 10, 8)
		if !found || err1 != nil || err2 != nil {
			return rank, false
		}
		return [3]int{i, int(b), int(u)}, true
	}
	return rank, false
}

// compareNodes orders places by their controllers; those of no known kind last.
func compareNodes(a, b string) int {
	ra, oka := nodeRank(a)
	rb, okb := nodeRank(b)
	switch {
	case oka && okb:
		return slices.Compare(ra[:], rb[:])
	case oka:
		return -1
	case okb:
		return 1
	}
	return cmp.Compare(a, b)
}

// dict is the content of a .vmx or .vmsd file; keys are in lower case, since
// VMware takes them in any.
type dict map[string]string

func (d dict) get(key string) string { return d[key] }

// parseDict reads lines of the form
//
//	key = "value"
//
// in the encoding that the line ".encoding" names (windows-1252 and shift_jis are in
// use beside UTF-8). In values, |22 stands for the character with that code in
// hexadecimal. Where a key is given twice, the last one counts.
func parseDict(format string, data []byte) (dict, error) {
	if len(data) > MaxText {
		return nil, fmt.Errorf("%s: %d bytes, more than %d: %w", format, len(data), MaxText, ondisk.ErrCorrupt)
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, corrupt(format, "text", "it is not a text file")
	}
	text, err := decode(data)
	if err != nil {
		return nil, corrupt(format, ".encoding", "%v", err)
	}
	d := make(dict)
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, "=")
		key = strings.TrimSpace(key)
		if !ok || key == "" || strings.HasPrefix(key, "#") {
			continue
		}
		value = strings.TrimSpace(value)
		if v, quoted := strings.CutPrefix(value, `"`); quoted {
			if i := strings.IndexByte(v, '"'); i >= 0 {
				v = v[:i]
			}
			value = v
		}
		if d[strings.ToLower(key)] = unescape(value); len(d) > maxEntries {
			return nil, corrupt(format, "text", "more than %d settings", maxEntries)
		}
	}
	if len(d) == 0 {
		return nil, corrupt(format, "text", "there are no settings in it")
	}
	return d, nil
}

// decode turns a file into UTF-8, by its own word for its encoding or else by its
// bytes.
func decode(data []byte) (string, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	name := ""
	for line := range bytes.Lines(data) {
		key, value, ok := strings.Cut(string(line), "=")
		if ok && strings.EqualFold(strings.TrimSpace(key), ".encoding") {
			name = strings.Trim(strings.TrimSpace(value), `"`)
			break
		}
	}
	enc := unicode.UTF8
	switch {
	case name != "":
		var err error
		if enc, err = htmlindex.Get(name); err != nil {
			return "", fmt.Errorf("unknown encoding %.40q", name)
		}
	case !validUTF8(data):
		enc = charmap.Windows1252
	}
	return enc.NewDecoder().String(string(data))
}

func validUTF8(data []byte) bool { return strings.ToValidUTF8(string(data), "") == string(data) }

// unescape replaces |XX by the byte with that code.
func unescape(s string) string {
	if !strings.Contains(s, "|") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '|' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
