package rdiff

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// attribute is one extended attribute.
type attribute struct {
	name  string // with its namespace
	value []byte
}

// blocks reads the files of attributes and ACLs: "# file: PATH", and then lines
// that are that path's. They have the paths' order and quoting, not the metadata's.
type blockScanner struct {
	scanner
	filePath []byte
	lines    [][]byte
	bytes    int
}

var blockWord = []byte("# file: ")

// next reads the next block; io.EOF after the last.
func (b *blockScanner) next() error {
	if !b.started {
		if err := b.readLine(); err != nil {
			return err
		}
	}
	b.started = false
	quoted, ok := bytes.CutPrefix(b.line, blockWord)
	if !ok {
		return b.corrupt("a record must begin with %q, this with %q", blockWord, clip(b.line))
	}
	if b.count++; b.count > maxRecords {
		return b.corrupt("more than %d records", maxRecords)
	}
	if b.count&0xff == 0 {
		if err := b.ctx.Err(); err != nil {
			return err
		}
	}
	if len(quoted) > 4*maxPath {
		return b.corrupt("path of %d bytes", len(quoted))
	}
	b.filePath = b.filePath[:0]
	if string(quoted) != "." {
		b.filePath = unescapeOctal(b.filePath, quoted)
		if err := checkPath(b.filePath); err != nil {
			return b.corrupt("%v", err)
		}
	}
	b.lines = b.lines[:0]
	for {
		err := b.readLine()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if bytes.HasPrefix(b.line, blockWord) {
			b.started = true
			return nil
		}
		if len(b.line) == 0 {
			continue
		}
		if b.bytes += len(b.line) + 32; b.bytes > maxXattrs {
			return b.corrupt("more than %d bytes of attributes", maxXattrs)
		}
		b.lines = append(b.lines, bytes.Clone(b.line))
	}
}

// unescapeOctal appends s to dst with every \ooo replaced by the byte it stands for.
func unescapeOctal(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] >= '0' && s[i+1] <= '3' {
			if v, ok := number(string(s[i+1:i+4]), 8); ok {
				dst = append(dst, v)
				i += 3
				continue
			}
		}
		dst = append(dst, s[i])
	}
	return dst
}

// parseEA reads the lines of one path in the file of extended attributes: a name
// alone, as it is, for an empty value; else the escaped name, and "=0s" and the
// value in base64.
func parseEA(lines [][]byte) ([]attribute, error) {
	var out []attribute
	for _, line := range lines {
		if line[0] == '#' {
			return nil, fmt.Errorf("line %q", clip(line))
		}
		quoted, value, ok := bytes.Cut(line, []byte("=0s"))
		if !ok {
			out = append(out, attribute{name: namespace(string(line))})
			continue
		}
		v := make([]byte, base64.StdEncoding.DecodedLen(len(value)))
		n, err := base64.StdEncoding.Decode(v, value)
		if err != nil || n > maxXattrValue {
			return nil, fmt.Errorf("value of attribute %q", clip(quoted))
		}
		out = append(out, attribute{name: namespace(string(unescapeOctal(nil, quoted))), value: v[:n]})
	}
	return out, nil
}

// namespace returns an attribute's name as Linux has it: those of other systems
// have no namespace there.
func namespace(name string) string {
	for _, ns := range []string{"user.", "trusted.", "security.", "system."} {
		if strings.HasPrefix(name, ns) && len(name) > len(ns) {
			return name
		}
	}
	return "user." + name
}

// xattrSet holds the attributes and ACLs of a point.
type xattrSet struct {
	of       map[uint32][]attribute // by leader
	warnings []string
}

// attributes returns what is recorded beyond the metadata. It is read when first
// asked for.
func (t *Tree) attributes(ctx context.Context) (*xattrSet, error) {
	t.xattrMu.Lock()
	defer t.xattrMu.Unlock()
	if t.xattrs != nil {
		return t.xattrs, nil
	}
	if _, err := t.whole(ctx); err != nil {
		return nil, err
	}
	set := &xattrSet{}
	err := t.repo.settle(ctx, func(l *listing) error {
		set = &xattrSet{of: make(map[uint32][]attribute)}
		i, err := l.locate(t.point)
		if err != nil {
			return err
		}
		s := &l.sessions[i]
		if err := t.readBlocks(ctx, set, s.ea, parseEA); err != nil {
			return err
		}
		names := t.aclNames()
		err = t.readBlocks(ctx, set, s.acl, func(lines [][]byte) ([]attribute, error) {
			return parseACL(lines, names)
		})
		for _, n := range names.dropped() {
			set.warnings = append(set.warnings, fmt.Sprintf("ACL entries for %s are left out: this host has no such name", n))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, w := range set.warnings {
		t.repo.opt.Logger.Warn(w, "point", stampUTC(t.time))
	}
	t.xattrs = set
	return set, nil
}

// readBlocks adds what a file of attributes or of ACLs says to set.
func (t *Tree) readBlocks(ctx context.Context, set *xattrSet, f sessionFile, parse func([][]byte) ([]attribute, error)) error {
	if f.name == "" {
		return nil
	}
	m, err := t.repo.openSession(ctx, f)
	if errors.Is(err, fs.ErrNotExist) {
		return moved(err)
	}
	if err != nil {
		return err
	}
	defer m.file.Close()
	strange := 0
	err = m.read(ctx, func(in io.Reader) error {
		b := blockScanner{scanner: scanner{ctx: ctx, in: bufio.NewReaderSize(in, 64<<10), name: m.file.Name()}}
		for {
			err := b.next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			attrs, err := parse(b.lines)
			if err != nil {
				return b.corrupt("%s: %v", describe(b.filePath), err)
			}
			n, ok := t.known().node(b.filePath)
			if !ok {
				strange++
				continue
			}
			// Names of one file have the same; those of the first count.
			if lead := t.known().leader(n); lead == n {
				set.of[lead] = mergeAttributes(set.of[lead], attrs)
			}
		}
	})
	if err == nil {
		err = m.file.Check(ctx)
	}
	if strange > 0 {
		set.warnings = append(set.warnings, fmt.Sprintf("%s has records of %d paths that don't exist", f.name, strange))
	}
	return err
}

// mergeAttributes adds attributes; of two with one name the later counts.
func mergeAttributes(a, b []attribute) []attribute {
	for _, n := range b {
		if i := slices.IndexFunc(a, func(o attribute) bool { return o.name == n.name }); i >= 0 {
			a[i] = n
		} else {
			a = append(a, n)
		}
	}
	return a
}

// all returns all attributes of the node n.
func (t *Tree) all(ctx context.Context, n uint32) ([]attribute, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	set, err := t.attributes(ctx)
	if err != nil {
		return nil, err
	}
	x := t.known()
	n = x.leader(n)
	return append(slices.Clone(set.of[n]), x.appleOf(x.nodes[n].rec)...), nil
}

// appleOf returns what a record has of macOS's.
func (s *state) appleOf(r ref) []attribute {
	k := len(s.base) - 1
	for s.base[k] > r {
		k--
	}
	a, ok := s.tables[k].apple[r-s.base[k]]
	if !ok {
		return nil
	}
	var out []attribute
	if a.set&hasFork != 0 {
		out = append(out, attribute{xattrResourceFork, a.fork})
	}
	if len(a.finder) > 0 {
		out = append(out, attribute{xattrFinderInfo, a.finder})
	}
	return out
}

// ListXattr implements guestfs.Tree.
func (t *Tree) ListXattr(ctx context.Context, id guestfs.ID) ([]string, error) {
	_, n, err := t.node(ctx, id)
	if err != nil {
		return nil, err
	}
	attrs, err := t.all(ctx, n)
	names := make([]string, 0, len(attrs))
	for _, a := range attrs {
		if !slices.Contains(names, a.name) {
			names = append(names, a.name)
		}
	}
	return names, err
}

// Xattr implements guestfs.Tree.
func (t *Tree) Xattr(ctx context.Context, id guestfs.ID, name string) ([]byte, error) {
	_, n, err := t.node(ctx, id)
	if err != nil {
		return nil, err
	}
	attrs, err := t.all(ctx, n)
	if err != nil {
		return nil, err
	}
	for _, a := range attrs {
		if a.name == name {
			return bytes.Clone(a.value), nil
		}
	}
	return nil, guestfs.ErrNoXattr
}

// errACL says what is wrong with an ACL.
func errACL(line []byte) error { return fmt.Errorf("ACL entry %q: %w", clip(line), ondisk.ErrCorrupt) }
