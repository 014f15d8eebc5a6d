package rdiff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/origin"
)

// sessionFile is a file of one session in dataDir.
type sessionFile struct {
	name string // as on disk; empty: there is none
	kind kind
	gzip bool
}

// session is one backup session, by the names of what it left in dataDir.
type session struct {
	time    int64
	stamp   string
	meta    sessionFile
	ea, acl sessionFile
	root    bool   // the root has an increment of this time
	lost    bool   // its metadata, or others that they are a difference from, are lost
	twice   string // there are two files where there can be but one
}

// listing is what the names in dataDir tell.
type listing struct {
	version   origin.Version // of dataDir
	settled   bool           // dataDir can't have changed since without its version
	quoting   *quoting
	sessions  []session // oldest first
	valid     int64     // time of the state that the mirror has, or must be brought back to
	points    int       // how many of sessions are up to valid
	suspended bool      // a session runs, or was interrupted: what it wrote can't be relied on
	warnings  []string
}

// settleTime is how old the last change of a directory must be for its time stamp
// to tell of the next one: file systems count time in steps of up to two seconds
// (FAT).
const settleTime = 2 * time.Second

func settled(v origin.Version, now time.Time) bool {
	age := now.Sub(time.Unix(0, v.Mtime))
	return age > settleTime || age < -time.Hour // a clock that is wrong says nothing
}

// list reads dataDir.
func (r *Repository) list(ctx context.Context) (*listing, error) {
	now := time.Now()
	info, err := r.folder.Lstat(ctx, r.path(dataDir))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", format, err)
	}
	l := &listing{version: info.Version, settled: settled(info.Version, now)}
	entries, err := r.folder.ReadDir(ctx, r.path(dataDir))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", format, err)
	}
	var chars, escapes string
	for _, e := range entries {
		switch e.Name {
		case charsFile:
			chars, err = r.small(ctx, charsFile)
		case escapesFile:
			escapes, err = r.small(ctx, escapesFile)
		}
		if err != nil {
			return nil, err
		}
	}
	if l.quoting, err = parseQuoting(chars, escapes); err != nil {
		return nil, err
	}
	l.read(entries)
	return l, nil
}

// small reads one of the little files that say how names are written.
func (r *Repository) small(ctx context.Context, name string) (string, error) {
	f, err := r.open(ctx, r.path(dataDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if f.Size() > maxSmallFile {
		return "", ondisk.Corruptf(format, name, 0, "%d bytes long", f.Size())
	}
	b := make([]byte, f.Size())
	if err := block.ReadFull(ctx, f, b, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(b), nil
}

// read sorts the entries of dataDir by their sessions.
func (l *listing) read(entries []origin.DirEntry) {
	at := make(map[int64]*session)
	get := func(inc *increment) *session {
		s := at[inc.time]
		if s == nil {
			s = &session{time: inc.time, stamp: inc.stamp}
			at[inc.time] = s
		}
		return s
	}
	var markers []int64
	for _, e := range entries {
		if e.Type.IsDir() {
			continue
		}
		name, ok := l.quoting.unquote(e.Name)
		if !ok {
			continue
		}
		inc, ok := parseIncrement(name)
		if !ok {
			continue
		}
		file := sessionFile{name: e.Name, kind: inc.kind, gzip: inc.gzip}
		switch inc.base {
		case markerPrefix:
			markers = append(markers, inc.time) // .data, as a rule
			get(&inc)
		case metaPrefix:
			s := get(&inc)
			s.put(&s.meta, file)
		case eaPrefix:
			s := get(&inc)
			s.put(&s.ea, file)
		case aclPrefix:
			s := get(&inc)
			s.put(&s.acl, file)
		case incrementsDir:
			get(&inc).root = true
		}
	}
	for _, s := range at {
		l.sessions = append(l.sessions, *s)
	}
	slices.SortFunc(l.sessions, func(a, b session) int { return cmpInt(a.time, b.time) })
	l.judge(markers)
}

func cmpInt(a, b int64) int {
	if a < b {
		return -1
	} else if a > b {
		return 1
	}
	return 0
}

// put notes a file of the session. A whole one counts before a difference: that is
// written first, and the whole one removed once it is complete.
func (s *session) put(slot *sessionFile, file sessionFile) {
	switch {
	case file.kind != kindSnapshot && file.kind != kindDiff:
	case slot.name == "", slot.kind == kindDiff && file.kind == kindSnapshot:
		*slot = file
	case slot.kind == file.kind:
		s.twice = fmt.Sprintf("there are both %s and %s", slot.name, file.name)
	}
}

// judge finds which sessions are points.
func (l *listing) judge(markers []int64) {
	slices.Sort(markers)
	markers = slices.Compact(markers)
	if len(markers) == 0 {
		l.warn("there is no %s file, so the first session is running or was interrupted: there is no restore point", markerPrefix)
		return
	}
	// Of two markers the newer is that of a session which hasn't come to its end.
	l.valid = markers[0]
	l.suspended = len(markers) > 1
	if l.suspended {
		l.warn("the session of %s is running, or was interrupted: restore points up to %s are valid",
			stampUTC(markers[len(markers)-1]), stampUTC(l.valid))
	}
	l.markLost()
	var lost, noEA, noACL int
	var hadEA, hadACL bool
	for _, s := range l.sessions {
		if s.time > l.valid {
			break
		}
		l.points++
		if s.lost {
			lost++
		}
		if hadEA && s.ea.name == "" {
			noEA++
		}
		if hadACL && s.acl.name == "" {
			noACL++
		}
		hadEA = hadEA || s.ea.name != ""
		hadACL = hadACL || s.acl.name != ""
	}
	if lost > 0 {
		l.warn("the metadata of %d of %d restore points is lost: attributes are those of the files in the repository", lost, l.points)
	}
	if noEA > 0 {
		l.warn("%d restore points have no file of extended attributes, though earlier ones do", noEA)
	}
	if noACL > 0 {
		l.warn("%d restore points have no file of ACLs, though earlier ones do", noACL)
	}
}

// markLost finds the sessions whose metadata can't be put together: their own, and
// those of each session on to the nearest whole ones, have to be there.
func (l *listing) markLost() {
	chain := 0 // files from the session on; 0: lost
	for i := len(l.sessions) - 1; i >= 0; i-- {
		s := &l.sessions[i]
		switch {
		case s.meta.name == "":
			chain = 0
		case s.meta.kind == kindSnapshot:
			chain = 1
		case s.time > l.valid:
			// An interrupted session writes no difference for its own time.
			chain = 0
		case chain == 0 || chain == maxChain:
			chain = 0
		default:
			chain++
		}
		s.lost = chain == 0
	}
}

func (l *listing) warn(msg string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf(msg, args...))
}

func stampUTC(t int64) string { return time.Unix(t, 0).UTC().Format(time.RFC3339) }

// find returns the index of the session of that time among the points.
func (l *listing) find(t int64) (int, bool) {
	return slices.BinarySearchFunc(l.sessions[:l.points], t, func(s session, t int64) int { return cmpInt(s.time, t) })
}

// chain returns the metadata files that together give the point sessions[i]: the
// nearest whole one from its time on, then the differences down to its own time. ok
// is false when one of them is lost.
func (l *listing) chain(i int) (files []sessionFile, ok bool) {
	if l.sessions[i].lost {
		return nil, false
	}
	for ; ; i++ {
		s := &l.sessions[i]
		files = append(files, s.meta)
		if s.meta.kind == kindSnapshot {
			slices.Reverse(files)
			return files, true
		}
	}
}

// key identifies the content of a point. What a session once recorded doesn't
// change: a later one turns metadata from whole to differences, and files of the
// mirror into increments, and leaves the content the same.
func (l *listing) key(s *session) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", s.time)
	for _, f := range []sessionFile{s.meta, s.ea, s.acl} {
		if f.name == "" {
			b.WriteString(" -")
		} else {
			b.WriteString(" +")
		}
	}
	fmt.Fprintf(&b, " %d:%d", l.version.Dev, l.version.Ino)
	return b.String()
}
