package store

import (
	"context"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Info says what the directory holds of one key.
type Info struct {
	Kind      string    `json:"kind"` // "object", "spool", "record"
	Key       string    `json:"key"`
	Size      int64     `json:"size"`                 // bytes
	BlockSize int       `json:"block_size,omitempty"` // bytes
	Blocks    int64     `json:"blocks,omitempty"`     // present
	Present   int64     `json:"present"`              // bytes
	OnDisk    int64     `json:"on_disk"`              // bytes that it takes up, index and all
	LastUse   time.Time `json:"last_use"`
}

// Objects lists what the directory holds, by kind and key. What a process used in
// the last seconds may not show yet. Objects in memory are not listed.
func (s *Store) Objects() ([]Info, error) {
	if s.dir == nil {
		return nil, nil
	}
	names, err := s.dir.names()
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*Info)
	for _, file := range names {
		if name, ok := strings.CutSuffix(file, indexSuffix); ok && strings.HasPrefix(name, objectPrefix) {
			byName[name] = s.objectInfo(name)
		}
		if name, ok := strings.CutSuffix(file, recordSuffix); ok {
			byName[name] = s.recordInfo(name)
		}
	}
	var all []Info
	for _, file := range names {
		name, _, _ := strings.Cut(file, ".")
		var st unix.Stat_t
		if info := byName[name]; info != nil && unix.Fstatat(int(s.dir.Fd()), file, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			info.OnDisk += st.Blocks * 512
		}
	}
	for _, info := range byName {
		if info != nil {
			all = append(all, *info)
		}
	}
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i], all[j]
		return a.Kind < b.Kind || a.Kind == b.Kind && (a.Key < b.Key || a.Key == b.Key && a.BlockSize < b.BlockSize)
	})
	return all, nil
}

// objectInfo describes an object; nil is one that isn't whole.
func (s *Store) objectInfo(name string) *Info {
	f, err := s.dir.open(name+indexSuffix, unix.O_RDONLY)
	if err != nil {
		return nil
	}
	defer f.Close()
	h, ok := readHeader(f)
	if !ok || h.fileName() != name {
		return nil
	}
	info := &Info{Kind: "object", Key: h.key, Size: h.size, BlockSize: h.blockSize}
	var last uint32
	for n, e := range entries(f.File, h.blocks()) {
		if e.present(s.boot) {
			info.Blocks++
			info.Present += min(int64(h.blockSize), h.size-n*int64(h.blockSize))
			last = max(last, e.used)
		}
	}
	if last != 0 {
		info.LastUse = time.Unix(int64(last), 0)
	}
	return info
}

// recordInfo describes a record, or the spool that it is of.
func (s *Store) recordInfo(name string) *Info {
	key, data, ok := s.readRecord(name + recordSuffix)
	if !ok {
		return nil
	}
	info := &Info{Kind: "record", Key: key, Size: int64(len(data)), Present: int64(len(data))}
	file := name + recordSuffix
	var st unix.Stat_t
	if strings.HasPrefix(name, spoolPrefix) {
		info.Kind, file = "spool", name+dataSuffix
	}
	if unix.Fstatat(int(s.dir.Fd()), file, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return nil
	}
	info.Size, info.Present = st.Size, st.Size
	if info.Kind == "record" {
		info.Size, info.Present = int64(len(data)), int64(len(data))
	}
	info.LastUse = time.Unix(st.Mtim.Unix())
	return info
}

// Usage returns how many bytes the directory takes up and may take up.
func (s *Store) Usage() (used, limit int64, err error) {
	if s.dir == nil {
		return 0, 0, nil
	}
	used, err = s.usage()
	return used, s.limit(used), err
}

// Pruning says what Prune removes. The zero value removes all.
type Pruning struct {
	Prefix    string        // only keys that begin so
	OlderThan time.Duration // only what wasn't used for so long
	Keep      int64         // bytes to keep at least, the most recently used ones
}

// Prune removes blocks and spools, and records where Keep is 0. What is in use, by
// any process, stays. It returns how many bytes it gave back.
func (s *Store) Prune(ctx context.Context, what Pruning) (freed int64, err error) {
	if s.dir == nil {
		return 0, nil
	}
	s.releaseIdle(0)
	c := choice{prefix: what.Prefix}
	if what.OlderThan > 0 {
		c.before = uint32(s.opt.clock().Add(-what.OlderThan).Unix())
	}
	need := int64(1 << 62)
	if what.Keep > 0 {
		used, err := s.usage()
		if err != nil {
			return 0, err
		}
		need = used - what.Keep
	}
	if freed, err = s.reclaim(ctx, need, c); err != nil || what.Keep > 0 {
		return freed, err
	}
	infos, err := s.Objects()
	if err != nil {
		return freed, err
	}
	for _, info := range infos {
		if !strings.HasPrefix(info.Key, what.Prefix) || c.before != 0 && info.LastUse.Unix() >= int64(c.before) {
			continue
		}
		h := header{key: info.Key, size: info.Size, blockSize: info.BlockSize}
		switch {
		case info.Kind == "record":
			err = s.SetBlob(info.Key, nil)
		case info.Kind == "object" && info.Blocks == 0 && s.removeObject(h.fileName()):
		default:
			continue
		}
		if err != nil {
			return freed, err
		}
		freed += info.OnDisk
	}
	return freed, nil
}

// Progress is how far Verify has come.
type Progress struct {
	Blocks int64 // read: blocks, and spools as one each
	Bytes  int64
	Bad    int64 // of them, those that were damaged, and dropped
}

// Verify reads all that the directory holds and drops what is damaged, except
// blocks that are in use. progress, which may be nil, is called after each block.
func (s *Store) Verify(ctx context.Context, progress func(Progress)) (p Progress, err error) {
	infos, err := s.Objects()
	if err != nil {
		return p, err
	}
	for _, info := range infos {
		switch info.Kind {
		case "object":
			err = s.verifyObject(ctx, info, &p, progress)
		case "spool":
			err = s.verifySpool(ctx, info, &p, progress)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *Progress) add(bytes int64, bad bool, progress func(Progress)) {
	p.Blocks++
	p.Bytes += bytes
	if bad {
		p.Bad++
	}
	if progress != nil {
		progress(*p)
	}
}

func (s *Store) verifyObject(ctx context.Context, info Info, p *Progress, progress func(Progress)) error {
	o, err := s.object(header{key: info.Key, size: info.Size, blockSize: info.BlockSize})
	if err != nil {
		return err
	}
	defer o.Close()
	if o.disk == nil {
		return nil
	}
	for n, e := range o.disk.entries() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.present(s.boot) {
			continue
		}
		gone, bad := o.disk.recheck(n)
		if !gone {
			p.add(o.disk.length(n), bad, progress)
		}
	}
	return nil
}

// recheck verifies block n whether or not that was done before.
func (l *layer) recheck(n int64) (gone, bad bool) {
	g := l.lockGroup(n)
	defer g.mu.Unlock()
	sl := &g.slots[n-g.first]
	if !l.lease(g, n) {
		return true, false
	}
	e, err := l.entry(n)
	if err != nil || !e.present(l.s.boot) {
		l.idle(g, n)
		return true, false
	}
	if sl.seen.Load() != 0 && sl.word.Load()&^ready == 0 {
		sl.seen.Store(0)
	}
	if l.verify(n, e) {
		if sl.word.Load() == 0 {
			l.idle(g, n)
		}
		return false, false
	}
	l.drop(g, n, e)
	return false, true
}

func (s *Store) verifySpool(ctx context.Context, info Info, p *Progress, progress func(Progress)) error {
	sp := &spool{s: s, name: hashName(spoolPrefix, info.Key)}
	s.mu.Lock()
	delete(s.checked, sp.name)
	s.mu.Unlock()
	ok, err := sp.find(ctx, info.Key)
	if err != nil {
		return err
	}
	if ok {
		_ = sp.file.Close()
	} else {
		s.removeSpool(sp.name)
	}
	p.add(info.Size, !ok, progress)
	return nil
}
