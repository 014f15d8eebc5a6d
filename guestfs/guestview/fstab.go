package guestview

import (
	"fmt"
	"path"
	"strings"
)

const (
	// maxFstab bounds the size of /etc/fstab that is read, in bytes: hundreds of
	// times what any machine has.
	maxFstab = 1 << 20
	// maxEntries bounds the entries that are used of it. Linux itself allows
	// 100,000 mounts (fs.mount-max), but each one costs look-ups here.
	maxEntries = 1024
)

// Entry is one line of /etc/fstab, its escapes decoded.
type Entry struct {
	Line    int      // counted from 1
	Spec    string   // what is mounted: "UUID=…", "/dev/sda1", "server:/export"
	Dir     string   // where: an absolute path, or "none", "swap"
	Type    string   // "ext4", "auto", …; may be a list with commas
	Options []string // "noauto", "subvol=@home", …
}

// ParseFstab parses the content of /etc/fstab as mount(8) does (fstab(5)): fields
// parted by blanks, octal escapes, comment lines. Lines that can't be entries are
// left out, with a warning.
func ParseFstab(b []byte) (entries []Entry, warnings []string) {
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '\n' || r == '\r' })
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		if len(fields) < 2 || strings.ContainsRune(line, 0) {
			warnings = appendWarning(warnings, "/etc/fstab line %d is no entry", n)
			continue
		}
		if len(entries) == maxEntries {
			return entries, appendWarning(warnings, "/etc/fstab has more than %d entries: the rest is not used", maxEntries)
		}
		e := Entry{Line: n, Spec: unquote(unescape(fields[0])), Dir: unescape(fields[1]), Type: "auto"}
		if len(fields) > 2 {
			e.Type = unescape(fields[2])
		}
		if len(fields) > 3 {
			e.Options = strings.Split(unescape(fields[3]), ",")
		}
		entries = append(entries, e)
	}
	return entries, warnings
}

// unescape decodes \ooo, which stands for a byte: blanks are written so.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	octal := func(c byte) bool { return c >= '0' && c <= '7' }
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] <= '3' && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b = append(b, (s[i+1]-'0')<<6|(s[i+2]-'0')<<3|(s[i+3]-'0'))
			i += 3
			continue
		}
		b = append(b, s[i])
	}
	return string(b)
}

// unquote takes the quotes from the value of a tag: LABEL="data".
func unquote(spec string) string {
	tag, value, ok := strings.Cut(spec, "=")
	if n := len(value); ok && n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		return tag + "=" + value[1:n-1]
	}
	return spec
}

// Has reports whether e has the option name, alone or with a value.
func (e *Entry) Has(name string) bool {
	_, ok := e.option(name)
	return ok
}

// option returns the value of the last option of that name.
func (e *Entry) option(name string) (value string, ok bool) {
	for _, o := range e.Options {
		if key, v, _ := strings.Cut(o, "="); key == name {
			value, ok = v, true
		}
	}
	return value, ok
}

// pseudo are types of what isn't on a disk of the machine, beside those that begin
// with "fuse".
var pseudo = map[string]bool{
	"swap": true, "ignore": true, "none": true,
	"autofs": true, "binfmt_misc": true, "bpf": true, "cgroup": true, "cgroup2": true, "configfs": true, "debugfs": true,
	"devfs": true, "devpts": true, "devtmpfs": true, "efivarfs": true, "fusectl": true, "hugetlbfs": true, "mqueue": true,
	"nfsd": true, "overlay": true, "aufs": true, "proc": true, "pstore": true, "ramfs": true, "rpc_pipefs": true,
	"securityfs": true, "selinuxfs": true, "squashfs": true, "sysfs": true, "tmpfs": true, "tracefs": true, "usbfs": true,
	"9p": true, "virtiofs": true, "vboxsf": true, "vmhgfs": true,
	"afs": true, "beegfs": true, "ceph": true, "cifs": true, "davfs": true, "gfs": true, "gfs2": true, "glusterfs": true,
	"lustre": true, "nfs": true, "nfs4": true, "ocfs2": true, "smb3": true, "smbfs": true,
	"iso9660": true, "udf": true,
}

// kind is what an entry means to the guest view.
type kind int

const (
	kindIgnored kind = iota // nothing of this machine's disks
	kindVolume              // a filesystem on a volume
	kindBind                // a directory shown at a second place
)

func (e *Entry) kind() kind {
	switch {
	case e.Has("bind") || e.Has("rbind"): // their type is "none", or anything
		return kindBind
	case e.Dir == "none" || e.Dir == "swap" || pseudo[e.Type] || strings.HasPrefix(e.Type, "fuse"):
		return kindIgnored
	case strings.HasPrefix(e.Spec, "//") || !strings.HasPrefix(e.Spec, "/") && !strings.Contains(e.Spec, "="):
		return kindIgnored // a share, "server:/export", "proc", "none"
	}
	return kindVolume
}

// noauto reports whether the guest doesn't mount e when it starts. An automount
// unit mounts it on first use, which is as good.
func (e *Entry) noauto() bool {
	return e.Has("noauto") && !e.Has("x-systemd.automount")
}

// dir returns where e is mounted, cleaned; false when it isn't an absolute path.
func (e *Entry) dir() (string, bool) {
	return path.Clean(e.Dir), strings.HasPrefix(e.Dir, "/")
}

// maxWarnings bounds the warnings of one view.
const maxWarnings = 100

func appendWarning(list []string, format string, args ...any) []string {
	switch len(list) {
	case maxWarnings:
		return list
	case maxWarnings - 1:
		return append(list, "there are more warnings than are shown")
	}
	return append(list, fmt.Sprintf(format, args...))
}
