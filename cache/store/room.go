package store

import (
	"container/heap"
	"context"
	"errors"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many of the least used blocks are chosen in one look at the
	// directory: 256 MiB at least, with a few hundred KiB of memory.
	batch = 4096
	// maxBusy bounds how many blocks in use are remembered in one run, so that
	// they aren't chosen again: as many as batches that are worth a try.
	maxBusy = 16 * batch
	// maxOpen bounds how many objects one run keeps open.
	maxOpen = 64
)

// room is what is known of the directory's size, and of the memory's.
type room struct {
	// left is how many bytes may be put before the directory is measured again.
	left  atomic.Int64
	slack atomic.Int64 // bytes, as of the last measuring
	kick  chan struct{}

	disk sync.Mutex // one look at a time in this process
	mem  sync.Mutex
	// spooled is how many bytes spools hold in memory.
	spooled atomic.Int64
	used    int64 // bytes in memory at the last look, plus what was put since; under mem
}

// limit returns how many bytes the directory may take up, when it takes up used.
func (s *Store) limit(used int64) int64 {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.dir.Fd()), &st); err != nil {
		return s.opt.Budget
	}
	return min(s.opt.Budget, (int64(st.Bavail)*st.Bsize+used)/2)
}

// usage returns what the directory takes up on its disk, in bytes.
func (s *Store) usage() (int64, error) {
	names, err := s.dir.names()
	var used int64
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(int(s.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			used += st.Blocks * 512
		}
	}
	return used, err
}

// makeRoom sees to it that n bytes fit into the budget, and reports whether they
// do. Most calls only count: the directory is measured every so often, by
// roomLoop before the budget is used up, or here when that is too late.
func (s *Store) makeRoom(n int64) bool {
	left := s.room.left.Add(-n)
	if left >= 0 {
		if left < s.room.slack.Load()/2 {
			select {
			case s.room.kick <- struct{}{}:
			default:
			}
		}
		return true
	}
	return s.measure(n, false)
}

// slack is the distance to a limit from which on room is made in the background.
func slack(limit int64) int64 { return min(limit/16, 256<<20) }

func (s *Store) roomLoop() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.room.kick:
		}
		s.measure(0, true)
	}
}

// measure looks at the directory, evicts what is too much for n more bytes (or,
// ahead of need, for the slack), takes n, and says how much may be put until the
// next look. Other processes put, too: so that is an eighth of what is left.
func (s *Store) measure(n int64, ahead bool) bool {
	if s.dir == nil {
		return false
	}
	s.room.disk.Lock()
	defer s.room.disk.Unlock()
	if s.room.left.Load() > max(n, s.room.slack.Load()) {
		s.room.left.Add(-n)
		return true // someone else has looked meanwhile
	}
	used, err := s.usage()
	if err != nil {
		return false
	}
	// The limit follows the free disk, and the slack follows the limit: a nearly
	// full disk must not have the cache emptied for a slack it can't give.
	limit := s.limit(used)
	want, slack := n, slack(limit)
	s.room.slack.Store(slack)
	if ahead {
		want = slack
	}
	if over := used + want - limit; over > 0 {
		// Whether this process did it or another, which then had the lock.
		_, _ = s.reclaim(context.Background(), over+2*slack, choice{})
		if used, err = s.usage(); err != nil {
			return false
		}
	}
	left := limit - used
	if left < n {
		s.room.left.Store(0)
		return false
	}
	s.room.left.Store(max(left/8, min(left, slack)) - n)
	return true
}

// emergency gives back a sixteenth of the cache, for a disk that is full.
func (s *Store) emergency() bool {
	s.room.disk.Lock()
	defer s.room.disk.Unlock()
	used, err := s.usage()
	if err != nil {
		return false
	}
	freed, err := s.reclaim(context.Background(), max(used/16, 2*maxBlock), choice{})
	return err == nil && freed > 0
}

// makeMemory sees to it that n more bytes fit into what is kept in memory.
func (s *Store) makeMemory(n int64) bool {
	s.room.mem.Lock()
	defer s.room.mem.Unlock()
	if s.room.used+n > s.opt.Memory {
		objects := s.opened()
		measure := func() (used int64) {
			for _, o := range objects {
				if l := o.mem.Load(); l != nil {
					used += l.index.held()
					for _, p := range l.parts {
						used += p.held()
					}
				}
			}
			return used + s.room.spooled.Load()
		}
		if s.room.used = measure(); s.room.used+n > s.opt.Memory {
			var c candidates
			for _, o := range objects {
				if l := o.mem.Load(); l != nil {
					c.object(o.name, o.header, l.index.File, l)
				}
			}
			need := s.room.used + n + s.opt.Memory/16 - s.opt.Memory
			for _, v := range c.sorted() {
				if need <= 0 {
					break
				}
				if freed, _ := v.l.evict(v.n, v.used); freed > 0 {
					need -= freed
				}
			}
			s.room.used = measure()
		}
		for _, o := range objects {
			_ = o.Close()
		}
	}
	if s.room.used+n > s.opt.Memory {
		return false
	}
	s.room.used += n
	return true
}

// choice says what may be evicted.
type choice struct {
	prefix string // of the key
	before uint32 // only what was last used before that, Unix seconds; 0 is all
}

// victim is a block or a spool that may be evicted.
type victim struct {
	name  string // file name without suffix
	h     header // of an object
	l     *layer // where the object is open here
	n     int64
	used  uint32
	bytes int64
}

type victimKey struct {
	name string
	n    int64
}

// candidates are the batch of least used victims seen so far, the most used first.
type candidates struct {
	choice
	busy map[victimKey]bool
	all  []victim
}

func (c *candidates) Len() int           { return len(c.all) }
func (c *candidates) Less(i, j int) bool { return c.all[i].used > c.all[j].used }
func (c *candidates) Swap(i, j int)      { c.all[i], c.all[j] = c.all[j], c.all[i] }
func (c *candidates) Push(v any)         { c.all = append(c.all, v.(victim)) }
func (c *candidates) Pop() any {
	v := c.all[len(c.all)-1]
	c.all = c.all[:len(c.all)-1]
	return v
}

func (c *candidates) add(v victim) {
	if c.before != 0 && v.used >= c.before || c.busy[victimKey{v.name, v.n}] {
		return
	}
	if len(c.all) == batch {
		if v.used >= c.all[0].used {
			return
		}
		heap.Pop(c)
	}
	heap.Push(c, v)
}

// sorted returns the victims, the least used first.
func (c *candidates) sorted() []victim {
	sort.SliceStable(c.all, func(i, j int) bool { return c.all[i].used < c.all[j].used })
	return c.all
}

// object adds the blocks of an object; l, when it is open here, knows of uses
// that the index doesn't. It reports whether there were any.
func (c *candidates) object(name string, h header, index *os.File, l *layer) (found bool) {
	for n, e := range entries(index, h.blocks()) {
		found = true
		used := e.used
		if l != nil {
			if g := l.find(n); g != nil {
				used = max(used, g.slots[n%groupBlocks].used.Load())
			}
		}
		c.add(victim{name: name, h: h, l: l, n: n, used: used, bytes: int64(h.blockSize)})
	}
	return found
}

// evict makes block n absent if it was not used after that time, and returns how
// many bytes that frees: 0 when it is in use.
func (l *layer) evict(n int64, used uint32) (int64, error) {
	g := l.lockGroup(n)
	defer g.mu.Unlock()
	if g.slots[n-g.first].used.Load() > used {
		return 0, nil
	}
	if e, err := l.entry(n); err != nil || e.state == stateAbsent || e.used > used {
		return 0, err
	}
	ok, err := l.clear(g, n)
	if !ok {
		return 0, err
	}
	return l.length(n), nil
}

// reclaim evicts the least used of what the choice allows, until need bytes are
// given back or there is no more. One process does that at a time.
func (s *Store) reclaim(ctx context.Context, need int64, what choice) (freed int64, err error) {
	// Its own open file: a lock is no lock against another of the same file.
	lock, err := s.dir.open(lockName, unix.O_RDWR)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if ok, err := lock.lockWithin(time.Second, unix.F_WRLCK, evictByte, 1); !ok {
		return 0, errors.Join(errBusy, err)
	}
	busy := make(map[victimKey]bool)
	for freed < need && len(busy) < maxBusy {
		c, err := s.survey(what, busy)
		if err != nil {
			return freed, err
		}
		if len(c.all) == 0 {
			break
		}
		got, err := s.evictAll(ctx, c.sorted(), need-freed, busy)
		freed += got
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// survey collects the least used victims of the directory.
func (s *Store) survey(what choice, busy map[victimKey]bool) (*candidates, error) {
	c := &candidates{choice: what, busy: busy}
	names, err := s.dir.names()
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		if name, ok := strings.CutSuffix(file, indexSuffix); ok && strings.HasPrefix(name, objectPrefix) {
			s.surveyObject(c, name)
		}
		if i := strings.LastIndex(file, partSuffix); i > 0 && strings.HasPrefix(file, objectPrefix) && !slices.Contains(names, file[:i]+indexSuffix) {
			s.removeObject(file[:i]) // of an index that is gone
		}
		if name, ok := strings.CutSuffix(file, dataSuffix); ok && strings.HasPrefix(name, spoolPrefix) {
			s.surveySpool(c, name)
		}
	}
	return c, nil
}

func (s *Store) surveyObject(c *candidates, name string) {
	index, err := s.dir.open(name+indexSuffix, unix.O_RDONLY)
	if err != nil {
		return
	}
	defer index.Close()
	h, ok := readHeader(index)
	if !ok || h.fileName() != name {
		s.removeObject(name) // unless someone is making it
		return
	}
	if !strings.HasPrefix(h.key, c.prefix) {
		return
	}
	s.mu.Lock()
	open := s.objects[name]
	s.mu.Unlock()
	var l *layer
	if open != nil {
		l = open.disk
	}
	if c.object(name, h, index.File, l) || l != nil {
		return
	}
	if st, err := index.Stat(); err == nil && s.opt.clock().Sub(st.ModTime()) > sweepAge {
		s.removeObject(name) // its blocks are gone, and nobody has come back to it
	}
}

// removeObject removes the files of an object that nobody has open, and reports
// whether it did.
func (s *Store) removeObject(name string) bool {
	index, err := s.dir.openOurs(name + indexSuffix)
	if err != nil {
		return false
	}
	defer index.Close()
	for _, at := range []int64{initByte, openByte} {
		if ok, err := index.lock(unix.F_WRLCK, at, 1); !ok || err != nil {
			return false
		}
	}
	if !s.dir.is(name+indexSuffix, index) {
		return false
	}
	for i := range maxSize / partSize {
		if s.dir.remove(name+partSuffix+strconv.Itoa(i)) != nil {
			return false
		}
	}
	return s.dir.remove(name+indexSuffix) == nil
}

// evictAll evicts victims in order until need bytes are given back. Those that
// are in use go to busy.
func (s *Store) evictAll(ctx context.Context, victims []victim, need int64, busy map[victimKey]bool) (freed int64, err error) {
	objects := make(map[string]*Object)
	closeAll := func() {
		for name, o := range objects {
			_ = o.Close()
			delete(objects, name)
		}
	}
	defer closeAll()
	for _, v := range victims {
		if freed >= need {
			break
		}
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		key := victimKey{v.name, v.n}
		if strings.HasPrefix(v.name, spoolPrefix) {
			if s.removeSpool(v.name) {
				freed += v.bytes
			} else {
				busy[key] = true
			}
			continue
		}
		o := objects[v.name]
		if o == nil {
			if len(objects) == maxOpen {
				closeAll()
			}
			if o, err = s.object(v.h); err != nil {
				return freed, err
			}
			objects[v.name] = o
		}
		var got int64
		if o.disk != nil {
			if got, err = o.disk.evict(v.n, v.used); err != nil {
				s.log.Warn("a cached block can't be evicted", "object", v.h.key, "block", v.n, "err", err)
			}
		}
		if got == 0 {
			busy[key] = true
		}
		freed += got
	}
	return freed, nil
}
