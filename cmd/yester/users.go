package main

import (
	"context"
	"strconv"
	"strings"

	"yester/guestfs"
)

// userNames are the names that the guest's own users and groups have.
type userNames struct {
	users, groups map[uint32]string
}

// maxUserFile bounds how much of /etc/passwd and /etc/group is read, in bytes.
const maxUserFile = 4 << 20

// readUserNames reads the tree's /etc/passwd and /etc/group. Names are a
// nicety: where they can't be read, numbers are shown.
func readUserNames(ctx context.Context, tree guestfs.Tree) *userNames {
	return &userNames{
		users:  readNames(ctx, tree, "/etc/passwd"),
		groups: readNames(ctx, tree, "/etc/group"),
	}
}

// readNames reads a file of lines "name:password:number:…"; of two names of one
// number the first is taken, as getpwuid(3) does.
func readNames(ctx context.Context, tree guestfs.Tree, path string) map[uint32]string {
	names := make(map[uint32]string)
	id, err := guestfs.Resolve(ctx, tree, path, true)
	if err != nil {
		return names
	}
	text, err := guestfs.ReadFile(ctx, tree, id, maxUserFile)
	if err != nil {
		return names
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 4)
		if len(f) < 3 || f[0] == "" || strings.IndexFunc(f[0], unsafeRune) >= 0 {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 32)
		if _, taken := names[uint32(n)]; err == nil && !taken {
			names[uint32(n)] = f[0]
		}
	}
	return names
}

func (u *userNames) user(id uint32) string  { return nameOr(u.users, id) }
func (u *userNames) group(id uint32) string { return nameOr(u.groups, id) }

func nameOr(names map[uint32]string, id uint32) string {
	if n, ok := names[id]; ok {
		return n
	}
	return strconv.FormatUint(uint64(id), 10)
}
