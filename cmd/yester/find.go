package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"yester/guestfs"
	"yester/internal/exitcode"
	"yester/internal/ondisk"
)

// found is a file that a PATH argument names.
type found struct {
	path string // in the tree, beginning with a slash; as the argument has it where that is no pattern
	id   guestfs.ID
	glob bool // it matched a pattern
}

// eachMatch calls do for every file that the PATH arguments name. What fails is
// printed, and the rest goes on, unless the output itself fails or the work is
// interrupted.
func (g *globalFlags) eachMatch(ctx context.Context, tree guestfs.Tree, args []string, follow bool, do func(found) error) error {
	var t tally
	for _, arg := range args {
		matches, err := find(ctx, tree, arg, follow)
		if err != nil {
			g.problem(&t, err)
			continue
		}
		for _, m := range matches {
			err := do(m)
			var w *writeError
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err == nil:
				t.ok++
			case errors.As(err, &w):
				return err
			default:
				g.problem(&t, fmt.Errorf("%s: %w", m.path, err))
			}
		}
	}
	return t.result()
}

// maxMatches bounds how many files one pattern may match, and how many
// directories "**" descends into.
const maxMatches = 1 << 20

// find returns the files that arg names: the one with exactly this name, or else
// those that match it as a pattern, by name. follow says whether a symbolic link
// at its end stands for what it leads to.
func find(ctx context.Context, tree guestfs.Tree, arg string, follow bool) ([]found, error) {
	id, err := guestfs.Resolve(ctx, tree, arg, follow)
	if err == nil {
		p := path.Clean("/" + arg)
		return []found{{path: p, id: id}}, nil
	}
	if !hasMeta(arg) || !errors.Is(err, guestfs.ErrNotExist) {
		return nil, err
	}
	gl := &globber{ctx: ctx, tree: tree, follow: follow}
	matches, err := gl.expand(arg)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", arg, err)
	}
	if len(matches) == 0 {
		return nil, fmt.Errorf("%q: no file matches: %w", arg, guestfs.ErrNotExist)
	}
	return matches, nil
}

func hasMeta(s string) bool { return strings.ContainsAny(s, `*?[\`) }

// globber expands patterns. Within a name, *, ? and [] are as in path.Match; a
// name ** is any number of directories. A leading dot is nothing special.
type globber struct {
	ctx    context.Context
	tree   guestfs.Tree
	follow bool
}

func (gl *globber) expand(pattern string) ([]found, error) {
	parts := strings.Split(strings.Trim(pattern, "/"), "/")
	// Up to the first pattern it is a path like any other.
	n := slices.IndexFunc(parts, hasMeta)
	base := "/" + strings.Join(parts[:n], "/")
	id, err := guestfs.Resolve(gl.ctx, gl.tree, base+"/", true)
	if err != nil {
		return nil, err
	}
	level := []found{{path: path.Clean(base), id: id}}
	for i, part := range parts[n:] {
		last := i == len(parts[n:])-1
		if _, err := path.Match(part, ""); err != nil {
			return nil, &codedError{msg: "bad pattern", code: exitcode.Usage, err: err}
		}
		if level, err = gl.step(level, part, last); err != nil {
			return nil, err
		}
	}
	for i := range level {
		level[i].glob = true
	}
	slices.SortFunc(level, func(a, b found) int { return strings.Compare(a.path, b.path) })
	return slices.CompactFunc(level, func(a, b found) bool { return a.path == b.path }), nil
}

// step goes one name further from each of level.
func (gl *globber) step(level []found, part string, last bool) (next []found, err error) {
	for _, f := range level {
		switch {
		case part == "" || part == ".":
			next = append(next, f)
		case part == "**":
			next, err = gl.below(next, f, last)
		case hasMeta(part):
			next, err = gl.matching(next, f, part, last)
		default:
			next, err = gl.literal(next, f, part, last)
		}
		if err != nil {
			return nil, err
		}
		if len(next) > maxMatches {
			return nil, fmt.Errorf("matches more than %d files: %w", maxMatches, guestfs.ErrTooLong)
		}
	}
	return next, nil
}

// literal adds the entry of f that has this name, if it has one.
func (gl *globber) literal(to []found, f found, name string, last bool) ([]found, error) {
	p := path.Join(f.path, name)
	id, err := guestfs.Resolve(gl.ctx, gl.tree, p, !last || gl.follow)
	switch {
	case err == nil:
		return append(to, found{path: p, id: id}), nil
	case isAny(err, guestfs.ErrNotExist, guestfs.ErrNotDir, guestfs.ErrLoop):
		return to, nil
	}
	return nil, err
}

// matching adds the entries of f whose names match.
func (gl *globber) matching(to []found, f found, pattern string, last bool) ([]found, error) {
	dir, err := gl.directory(f)
	if err != nil || dir == nil {
		return to, err
	}
	var names []guestfs.Dirent
	err = gl.tree.ReadDir(gl.ctx, *dir, 0, func(e guestfs.Dirent) bool {
		if ok, _ := path.Match(pattern, e.Name); ok && legal(e.Name) {
			names = append(names, e)
		}
		return len(names) <= maxMatches
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	for _, e := range names {
		m := found{path: path.Join(f.path, e.Name), id: e.ID}
		if gl.follow && last && (e.Type == guestfs.ModeSymlink || e.Type == 0) {
			if m.id, err = guestfs.Resolve(gl.ctx, gl.tree, m.path, true); isAny(err, guestfs.ErrNotExist, guestfs.ErrNotDir, guestfs.ErrLoop) {
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		to = append(to, m)
	}
	return to, nil
}

// directory returns the directory that f is or leads to; nil when it is none.
func (gl *globber) directory(f found) (*guestfs.ID, error) {
	id, err := guestfs.Resolve(gl.ctx, gl.tree, f.path+"/", true)
	if isAny(err, guestfs.ErrNotExist, guestfs.ErrNotDir, guestfs.ErrLoop) {
		return nil, nil
	}
	return &id, err
}

// below adds f and all directories below it, and files too when all is set.
// Symbolic links are not followed.
func (gl *globber) below(to []found, f found, all bool) ([]found, error) {
	attr, err := gl.tree.Attr(gl.ctx, f.id)
	if err != nil {
		return nil, err
	}
	if !attr.IsDir() {
		return to, nil
	}
	seen := map[guestfs.ID]bool{f.id: true}
	if !all {
		to = append(to, f)
	}
	for stack := []found{f}; len(stack) > 0; {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		var bad error
		err := gl.tree.ReadDir(gl.ctx, d.id, 0, func(e guestfs.Dirent) bool {
			if !legal(e.Name) {
				return true
			}
			m := found{path: path.Join(d.path, e.Name), id: e.ID}
			isDir := e.Type == guestfs.ModeDir
			if e.Type == 0 {
				a, err := gl.tree.Attr(gl.ctx, e.ID)
				if err != nil {
					bad = fmt.Errorf("%s: %w", m.path, err)
					return false
				}
				isDir = a.IsDir()
			}
			if isDir {
				if seen[e.ID] {
					bad = fmt.Errorf("%s: directory has another name already: %w", m.path, ondisk.ErrCorrupt)
					return false
				}
				seen[e.ID] = true
				stack = append(stack, m)
			}
			if all || isDir {
				to = append(to, m)
			}
			return len(to) <= maxMatches && len(seen) <= maxMatches
		})
		if err = errors.Join(bad, err); err != nil {
			return nil, fmt.Errorf("%s: %w", d.path, err)
		}
		if len(to) > maxMatches || len(seen) > maxMatches {
			return nil, fmt.Errorf("matches more than %d files: %w", maxMatches, guestfs.ErrTooLong)
		}
	}
	return to, nil
}

// legal reports whether a file can have this name.
func legal(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}
