package main

import (
	"fmt"
	"strings"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/restorepoint"
)

// What `yester log`, `diff` and `ls --deleted` print of files as they once were.

// changeNames are the names of changes, in the order in which they are printed.
var changeNames = []struct {
	change imageformats.Change
	name   string
}{
	{imageformats.ChangeAdded, "added"},
	{imageformats.ChangeRemoved, "removed"},
	{imageformats.ChangeType, "type"},
	{imageformats.ChangeContent, "content"},
	{imageformats.ChangeMode, "mode"},
	{imageformats.ChangeOwner, "owner"},
	{imageformats.ChangeMtime, "mtime"},
	{imageformats.ChangeXattrs, "xattrs"},
	{imageformats.ChangeLinks, "links"},
}

// changeList returns the names of what c has; never nil, for --json.
func changeList(c imageformats.Change) []string {
	list := []string{}
	for _, n := range changeNames {
		if c&n.change != 0 {
			list = append(list, n.name)
		}
	}
	return list
}

// jsonAttr is what --json shows of a file's attributes at some point.
type jsonAttr struct {
	Type      string    `json:"type"`
	Mode      string    `json:"mode"` // permissions, octal
	Nlink     uint32    `json:"nlink"`
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	User      string    `json:"user,omitempty"`
	Group     string    `json:"group,omitempty"`
	Size      *int64    `json:"size,omitempty"` // absent when it isn't known
	Mtime     time.Time `json:"mtime"`
	Major     *uint32   `json:"major,omitempty"`
	Minor     *uint32   `json:"minor,omitempty"`
	Target    string    `json:"target,omitempty"`
	TargetB64 string    `json:"target_b64,omitempty"`
}

func (g *globalFlags) newJSONAttr(a *guestfs.Attr, names *userNames) *jsonAttr {
	j := &jsonAttr{
		Type: typeNames[a.Mode&guestfs.ModeType], Mode: fmt.Sprintf("%04o", a.Mode&0o7777), Nlink: a.Nlink,
		UID: a.UID, GID: a.GID, User: names.users[a.UID], Group: names.groups[a.GID], Mtime: g.jsonTime(a.Mtime),
	}
	if a.Size >= 0 {
		j.Size = &a.Size
	}
	if t := a.Mode & guestfs.ModeType; t == guestfs.ModeBlock || t == guestfs.ModeChar {
		j.Major, j.Minor = &a.Major, &a.Minor
	}
	return j
}

// sizeText formats a file's size, or its device number.
func sizeText(a *guestfs.Attr) string {
	switch t := a.Mode & guestfs.ModeType; {
	case t == guestfs.ModeBlock || t == guestfs.ModeChar:
		return fmt.Sprintf("%d, %d", a.Major, a.Minor)
	case a.Size < 0:
		return "?"
	}
	return fmt.Sprint(a.Size)
}

// pointTime is a point's time in the zone that the user wants.
func (g *globalFlags) pointTime(p *restorepoint.Point) time.Time {
	if g.local {
		return p.Time.Local()
	}
	return p.Time.UTC()
}

// shellWord returns s as a shell takes it for one word.
func shellWord(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+=:,@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
