package store

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"
)

const (
	// commitEvery is for how long blocks are collected before one fdatasync
	// serves them all: long enough for some hundred blocks, short against what a
	// power failure costs (they are fetched again).
	commitEvery = 200 * time.Millisecond
	// commitBytes is how many bytes end the wait: what a slow disk writes in a second.
	commitBytes = 64 << 20
)

// commit is a block that was put, pinned until its bytes are on disk.
type commit struct {
	l  *layer
	g  *group
	n  int64
	id uint64 // of its entry
}

// committer collects what is to be made durable.
type committer struct {
	mu    sync.Mutex // guards what follows
	queue []commit
	bytes int
	kick  chan struct{}
	run   sync.Mutex // one commit at a time
}

func (c *committer) add(b commit, n int) {
	c.mu.Lock()
	c.queue = append(c.queue, b)
	c.bytes += n
	first, full := len(c.queue) == 1, c.bytes >= commitBytes
	c.mu.Unlock()
	if first || full {
		select {
		case c.kick <- struct{}{}:
		default:
		}
	}
}

func (c *committer) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes >= commitBytes
}

// commitLoop makes blocks durable behind those who fetch them.
func (s *Store) commitLoop() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.commits.kick:
		}
		for until := time.After(commitEvery); !s.commits.full(); {
			select {
			case <-s.stop:
				return
			case <-s.commits.kick:
				continue
			case <-until:
			}
			break
		}
		_ = s.commitAll() // said by diskFailed
	}
}

// Sync returns once all that was put before is on disk.
func (s *Store) Sync() error { return s.commitAll() }

func (s *Store) commitAll() error {
	c := &s.commits
	c.run.Lock()
	defer c.run.Unlock()
	c.mu.Lock()
	queue := c.queue
	c.queue, c.bytes = nil, 0
	c.mu.Unlock()

	var failed error
	synced := make(map[*file]error)
	for _, b := range queue {
		f, _ := b.l.place(b.n)
		err, done := synced[f]
		if !done {
			err = f.sync()
			synced[f] = err
			if err != nil {
				s.diskFailed(err)
				failed = errors.Join(failed, err)
			}
		}
		if err == nil {
			err = b.l.durable(b)
			failed = errors.Join(failed, err)
		} else {
			b.l.undo(b)
		}
		b.l.pending.Add(-1)
	}
	return failed
}

// durable says in the entry that the block is on disk, and gives its pin back.
func (l *layer) durable(b commit) error {
	b.g.mu.Lock()
	defer b.g.mu.Unlock()
	defer b.g.slots[b.n-b.g.first].word.Add(^uint32(0))
	e, err := l.entry(b.n)
	if err != nil || e.id() != b.id {
		return err // another process has put it again, and will say so
	}
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], stateDurable)
	return l.index.writeAt(p[:], l.entryOff(b.n)+stateOff)
}

// undo forgets a block that the disk failed to take: what the page cache has of
// it may give way to what the disk had there before.
func (l *layer) undo(b commit) {
	b.g.mu.Lock()
	defer b.g.mu.Unlock()
	sl := &b.g.slots[b.n-b.g.first]
	sl.word.And(^uint32(ready))
	sl.seen.Store(0)
	sl.word.Add(^uint32(0))
	if ok, err := l.clear(b.g, b.n); ok || err != nil {
		return
	}
	// In use, here or elsewhere. Who comes next is to find no block.
	if e, err := l.entry(b.n); err == nil && e.id() == b.id {
		_ = l.writeEntry(b.n, entry{state: stateEvicting})
	}
}
