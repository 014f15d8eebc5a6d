package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"yester/guestfs"
)

// formatBytes formats a number of bytes for people, in powers of 1024.
func formatBytes(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f, unit := float64(n)/1024, 0
	for f >= 1023.95 && unit < 5 {
		f, unit = f/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[unit])
}

// formatDuration formats a time that is left, to the second.
func formatDuration(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	if s < 3600 {
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}

// unsafeRune reports whether r can't be shown as it is: control characters move
// the cursor and change colours; format characters hide or reorder text.
func unsafeRune(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }

// shownName returns a file's name for out: quoted, if it has characters that a
// terminal would act on, when that is one; else as it is, byte for byte.
func shownName(name string, quote bool) string {
	if quote && strings.IndexFunc(name, unsafeRune) >= 0 {
		return strconv.Quote(name)
	}
	return name
}

// typeNames are the types of files as --json shows them.
var typeNames = map[uint32]string{
	guestfs.ModeRegular: "file", guestfs.ModeDir: "directory", guestfs.ModeSymlink: "symlink", guestfs.ModeFifo: "fifo",
	guestfs.ModeSocket: "socket", guestfs.ModeBlock: "block", guestfs.ModeChar: "char",
}

// typeLetters are the types of files as ls -l shows them.
var typeLetters = map[uint32]byte{
	guestfs.ModeRegular: '-', guestfs.ModeDir: 'd', guestfs.ModeSymlink: 'l', guestfs.ModeFifo: 'p',
	guestfs.ModeSocket: 's', guestfs.ModeBlock: 'b', guestfs.ModeChar: 'c',
}

// modeString formats a mode as ls -l does: "-rwsr-xr-x".
func modeString(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	if t, ok := typeLetters[mode&guestfs.ModeType]; ok {
		b[0] = t
	}
	for i := range 9 {
		if mode&(0o400>>i) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit    uint32
		at     int
		letter byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if mode&s.bit == 0 {
			continue
		}
		if b[s.at] == '-' {
			s.letter -= 'a' - 'A'
		}
		b[s.at] = s.letter
	}
	return string(b)
}

// jsonFile is a file as --json shows it. Names that aren't UTF-8 are in the
// fields that end in _b64, with replacement characters in the others.
type jsonFile struct {
	Path      string     `json:"path"`
	PathB64   string     `json:"path_b64,omitempty"`
	Type      string     `json:"type"`
	Mode      string     `json:"mode"` // permissions, octal
	Nlink     uint32     `json:"nlink"`
	UID       uint32     `json:"uid"`
	GID       uint32     `json:"gid"`
	User      string     `json:"user,omitempty"`
	Group     string     `json:"group,omitempty"`
	Size      int64      `json:"size"`
	Blocks    int64      `json:"blocks"` // of 512 bytes
	Inode     uint64     `json:"inode"`
	Mtime     time.Time  `json:"mtime"`
	Atime     time.Time  `json:"atime"`
	Ctime     time.Time  `json:"ctime"`
	Btime     *time.Time `json:"btime,omitempty"`
	Major     *uint32    `json:"major,omitempty"`
	Minor     *uint32    `json:"minor,omitempty"`
	Target    string     `json:"target,omitempty"`
	TargetB64 string     `json:"target_b64,omitempty"`
	// Xattrs are the extended attributes' values, in base 64; `yester stat` only.
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
}

// newJSONFile describes the file at path. target is a link's.
func (g *globalFlags) newJSONFile(path string, id guestfs.ID, a *guestfs.Attr, target string, names *userNames) jsonFile {
	f := jsonFile{
		Type: typeNames[a.Mode&guestfs.ModeType], Mode: fmt.Sprintf("%04o", a.Mode&0o7777), Nlink: a.Nlink,
		UID: a.UID, GID: a.GID, User: names.users[a.UID], Group: names.groups[a.GID],
		Size: a.Size, Blocks: a.Blocks, Inode: id.Ino,
		Mtime: g.jsonTime(a.Mtime), Atime: g.jsonTime(a.Atime), Ctime: g.jsonTime(a.Ctime),
	}
	f.Path, f.PathB64 = jsonBytes(path)
	f.Target, f.TargetB64 = jsonBytes(target)
	if a.Btime != (guestfs.Time{}) {
		t := g.jsonTime(a.Btime)
		f.Btime = &t
	}
	if t := a.Mode & guestfs.ModeType; t == guestfs.ModeBlock || t == guestfs.ModeChar {
		f.Major, f.Minor = &a.Major, &a.Minor
	}
	return f
}

// jsonBytes returns s as JSON can hold it, and in base 64 where that loses
// something.
func jsonBytes(s string) (text, b64 string) {
	if utf8.ValidString(s) {
		return s, ""
	}
	return strings.ToValidUTF8(s, "�"), base64.StdEncoding.EncodeToString([]byte(s))
}

// jsonTime returns t in the zone that the user wants, within the years that JSON
// can hold (RFC 3339): filesystems hold more, by damage at least.
func (g *globalFlags) jsonTime(t guestfs.Time) time.Time {
	const first, last = -62135596800, 253402300799 // years 1 to 9999
	t.Sec = min(max(t.Sec, first), last)
	if g.local {
		return t.Time().Local()
	}
	return t.Time()
}

// printJSON prints v as one line.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
