package guestview

import (
	"slices"
	"strconv"
	"strings"
)

// find returns the members that spec, of /etc/fstab, names. What the guest itself
// wrote down counts more than the position of a disk: Linux numbers disks as it
// finds them, in the order of their attachment as a rule.
func find(members []Member, spec string) []int {
	exact, known := matcher(spec)
	var found []int
	for i := range members {
		if known && exact(&members[i]) || slices.Contains(members[i].Devices, spec) {
			found = append(found, i)
		}
	}
	name, ok := strings.CutPrefix(spec, "/dev/")
	if len(found) > 0 || !ok {
		return found
	}
	if d, ok := parseDevice(name); ok {
		for i := range members {
			if m := &members[i]; m.Disk == d.disk && m.Number == d.part {
				found = append(found, i)
			}
		}
	}
	return found
}

// matcher returns the test for a spec that is a tag, as UUID=… or as a link in
// /dev/disk/by-uuid; false when it is neither.
func matcher(spec string) (func(*Member) bool, bool) {
	tag, value, ok := strings.Cut(spec, "=")
	if link, isLink := strings.CutPrefix(spec, "/dev/disk/by-"); isLink {
		tag, value, ok = strings.Cut(link, "/")
		tag, value = strings.ToUpper(tag), unhex(value)
	}
	if !ok || value == "" {
		return nil, false
	}
	return func(m *Member) bool {
		have := m.tag(tag)
		if strings.HasSuffix(tag, "UUID") {
			return strings.EqualFold(have, value)
		}
		return have == value
	}, true
}

// tag returns m's value of one of the tags that /etc/fstab and /dev/disk/by-* know,
// "" when it has none.
func (m *Member) tag(tag string) string {
	switch tag {
	case "UUID", "LABEL":
		if m.Tree == nil {
			return ""
		}
		if tag == "LABEL" {
			return m.Tree.Info().Label
		}
		return m.Tree.Info().UUID
	case "PARTUUID":
		return m.PartUUID
	case "PARTLABEL":
		return m.PartLabel
	}
	return ""
}

// unhex decodes the \xHH by which udev writes what it doesn't like in the names of
// links in /dev/disk.
func unhex(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// device is a disk, counted from 0, and a partition of it, 0 for the whole disk.
type device struct{ disk, part int }

// maxUnit bounds the numbers in a device's name.
const maxUnit = 1 << 16

// parseDevice takes apart the name of a partition's device without "/dev/"
// (Documentation/admin-guide/devices.txt): disks have letters, or numbers and then
// a "p" before the partition.
func parseDevice(name string) (device, bool) {
	for _, prefix := range []string{"sd", "vd", "hd", "xvd", "ubd"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return letters(rest)
		}
	}
	if rest, ok := strings.CutPrefix(name, "mmcblk"); ok {
		disk, rest, ok := digits(rest)
		part, ok2 := partition(rest)
		return device{disk, part}, ok && ok2
	}
	if rest, ok := strings.CutPrefix(name, "nvme"); ok {
		controller, rest, ok1 := digits(rest)
		rest, ok2 := strings.CutPrefix(rest, "n")
		space, rest, ok3 := digits(rest)
		part, ok4 := partition(rest)
		// Clouds attach disks as controllers of one namespace each, or all as
		// namespaces, which count from 1, of the first controller.
		return device{controller + space - 1, part}, ok1 && ok2 && ok3 && ok4 && space > 0
	}
	return device{}, false
}

// letters takes apart "a1", "b", "aa12": after z comes aa.
func letters(s string) (device, bool) {
	disk, i := 0, 0
	for ; i < len(s) && i < 3 && s[i] >= 'a' && s[i] <= 'z'; i++ {
		disk = disk*26 + int(s[i]-'a') + 1
	}
	if i == 0 {
		return device{}, false
	}
	if i == len(s) {
		return device{disk - 1, 0}, true
	}
	part, rest, ok := digits(s[i:])
	return device{disk - 1, part}, ok && rest == "" && part > 0
}

func digits(s string) (n int, rest string, ok bool) {
	i := 0
	for ; i < len(s) && s[i] >= '0' && s[i] <= '9' && n < maxUnit; i++ {
		n = n*10 + int(s[i]-'0')
	}
	return n, s[i:], i > 0
}

func partition(s string) (int, bool) {
	if s == "" {
		return 0, true
	}
	s, ok := strings.CutPrefix(s, "p")
	n, rest, ok2 := digits(s)
	return n, ok && ok2 && rest == "" && n > 0
}
