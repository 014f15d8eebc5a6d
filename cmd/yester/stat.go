package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"yester/guestfs"
)

func newStatCommand(g *globalFlags) *cobra.Command {
	var numeric bool
	cmd := &cobra.Command{
		Use:   "stat SOURCE PATH...",
		Short: "Show all that is known of files",
		Long: `Show type, size, owner, permissions, times and extended attributes of files. Times
are shown with all their digits. Symbolic links are not followed; a slash at the
end of PATH follows them. PATH may be a pattern with *, ?, [] and **.`,
		Example: `  yester stat /backups/web01 /etc/shadow
  yester stat /backups/web01 '/home/*' --json`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			s, err := g.openTree(ctx, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			names := &userNames{}
			if !numeric {
				names = readUserNames(ctx, s.tree)
			}
			out := bufio.NewWriter(g.stdout)
			return g.eachMatch(ctx, s.tree, args[1:], false, func(m found) error {
				err := g.stat(ctx, out, s.tree, m, names)
				if ferr := out.Flush(); ferr != nil {
					return newWriteError(ferr)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&numeric, "numeric", "n", false, "show owners by number")
	return cmd
}

// stat prints all of one file. What can be shown is shown, whatever else fails.
func (g *globalFlags) stat(ctx context.Context, out io.Writer, tree guestfs.Tree, m found, names *userNames) error {
	a, err := tree.Attr(ctx, m.id)
	if err != nil {
		return err
	}
	var target string
	var failed error
	if a.IsSymlink() {
		target, failed = tree.ReadLink(ctx, m.id)
	}
	xattrs := make(map[string][]byte)
	list, err := tree.ListXattr(ctx, m.id)
	failed = errors.Join(failed, err)
	for _, name := range list {
		value, err := tree.Xattr(ctx, m.id, name)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
			continue
		}
		xattrs[name] = value
	}
	f := g.newJSONFile(m.path, m.id, &a, target, names)
	f.Xattrs = xattrs
	if g.json {
		return errors.Join(failed, printJSON(out, f))
	}
	quote := terminal(g.stdout)
	name := shownName(m.path, quote)
	if a.IsSymlink() {
		name += " -> " + shownName(target, quote)
	}
	kind := f.Type
	if f.Major != nil {
		kind += fmt.Sprintf(" device %d, %d", *f.Major, *f.Minor)
	}
	fmt.Fprintf(out, "  File: %s\n", name)
	fmt.Fprintf(out, "  Type: %s   Size: %d   Blocks: %d   Inode: %d   Links: %d\n", kind, a.Size, a.Blocks, m.id.Ino, a.Nlink)
	fmt.Fprintf(out, "Access: %s (%s)   Owner: %s   Group: %s\n", f.Mode, modeString(a.Mode),
		ownerText(names.user(a.UID), a.UID), ownerText(names.group(a.GID), a.GID))
	g.statTime(out, "Access", a.Atime)
	g.statTime(out, "Modify", a.Mtime)
	g.statTime(out, "Change", a.Ctime)
	if a.Btime != (guestfs.Time{}) {
		g.statTime(out, " Birth", a.Btime)
	}
	for _, name := range list {
		if value, ok := xattrs[name]; ok {
			fmt.Fprintf(out, " Xattr: %s=%s\n", shownName(name, quote), xattrText(value))
		}
	}
	return failed
}

func ownerText(name string, id uint32) string {
	if n := strconv.FormatUint(uint64(id), 10); name != n {
		return fmt.Sprintf("%s (%s)", n, name)
	}
	return name
}

func (g *globalFlags) statTime(out io.Writer, what string, t guestfs.Time) {
	tt := t.Time()
	if g.local {
		tt = tt.Local()
	}
	fmt.Fprintf(out, "%s: %s\n", what, tt.Format(time.RFC3339Nano))
}

// xattrText shows a value as text where it is some, or else in hexadecimal, as
// getfattr(1) does.
func xattrText(value []byte) string {
	s := strings.TrimSuffix(string(value), "\x00")
	if strings.IndexFunc(s, unsafeRune) < 0 {
		return strconv.Quote(string(value))
	}
	return fmt.Sprintf("0x%x", value)
}
