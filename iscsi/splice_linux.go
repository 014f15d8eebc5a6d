package iscsi

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pipes carry pages of the page cache to a socket without copying them. A server
// keeps a few: the kernel lets an unprivileged user have 64 MiB of pipe buffers
// in all (/proc/sys/fs/pipe-user-pages-soft).
const (
	pipeSize  = 1 << 20
	maxPipes  = 16
	minSplice = 64 << 10 // below it two copies are cheaper than the extra calls
)

type pipe struct {
	r, w   int
	size   int  // bytes it holds, when they begin on a page
	spoilt bool // holds bytes of a PDU that was never sent
}

// pipePool lends pipes; when all are lent, reads are copied.
type pipePool struct {
	mu     sync.Mutex
	idle   []*pipe
	n      int
	closed bool
}

func (p *pipePool) get() *pipe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := len(p.idle); k > 0 {
		q := p.idle[k-1]
		p.idle = p.idle[:k-1]
		return q
	}
	if p.n >= maxPipes || p.closed {
		return nil
	}
	var fd [2]int
	if unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	q := &pipe{r: fd[0], w: fd[1]}
	unix.FcntlInt(uintptr(q.w), unix.F_SETPIPE_SZ, pipeSize) // may be refused: see what it has
	size, err := unix.FcntlInt(uintptr(q.w), unix.F_GETPIPE_SZ, 0)
	if err != nil || size < minSplice {
		q.close()
		return nil
	}
	q.size = size
	p.n++
	return q
}

func (p *pipePool) put(q *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.spoilt || p.closed {
		q.close()
		p.n--
		return
	}
	p.idle = append(p.idle, q)
}

func (p *pipePool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, q := range p.idle {
		q.close()
	}
	p.n -= len(p.idle)
	p.idle = nil
}

func (q *pipe) close() {
	unix.Close(q.r)
	unix.Close(q.w)
}

// fits reports whether n bytes from file offset off on fit into the pipe, which
// holds pages.
func (q *pipe) fits(off int64, n int) bool {
	return int64(n)+off%int64(pageSize) <= int64(q.size)
}

// fill puts n bytes of f into the pipe; it waits for the disk where it must. A
// file that ends early is an error, before anything was promised to anybody.
func (q *pipe) fill(f *os.File, off int64, n int) error {
	fd := int(f.Fd())
	for n > 0 {
		o := off
		m, err := unix.Splice(fd, &o, q.w, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil || m <= 0 {
			q.spoilt = true
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		off += m
		n -= int(m)
	}
	return nil
}

var pageSize = os.Getpagesize()

// splicer sends from pipes to one socket.
type splicer struct {
	raw syscall.RawConn
	// Arguments and result of the calls below, in fields so that the closures,
	// made once, allocate nothing.
	head    []byte
	p       *pipe
	left    int
	err     error
	headFn  func(fd uintptr) bool
	spliceF func(fd uintptr) bool
}

// newSplicer returns nil where nc isn't TCP.
func newSplicer(nc net.Conn) *splicer {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	s := &splicer{raw: raw}
	s.headFn = func(fd uintptr) bool {
		for len(s.head) > 0 {
			n, err := unix.SendmsgN(int(fd), s.head, nil, nil, unix.MSG_MORE|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return false
			case err != nil:
				s.err = err
				return true
			default:
				s.head = s.head[n:]
			}
		}
		return true
	}
	s.spliceF = func(fd uintptr) bool {
		for s.left > 0 {
			n, err := unix.Splice(s.p.r, nil, int(fd), nil, s.left, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return false
			case err != nil:
				s.err = err
				return true
			case n == 0:
				s.err = io.ErrUnexpectedEOF
				return true
			default:
				s.left -= int(n)
			}
		}
		return true
	}
	return s
}

// send writes a header and then n bytes out of p.
func (s *splicer) send(head []byte, p *pipe, n int) error {
	s.head, s.p, s.left, s.err = head, p, n, nil
	err := s.raw.Write(s.headFn)
	if err == nil && s.err == nil {
		err = s.raw.Write(s.spliceF)
	}
	if s.err != nil {
		err = s.err
	}
	s.head, s.p = nil, nil
	return err
}

// readCached reads from the page cache alone: n is what was there, and less than
// len(p) when some of it would have to be waited for.
func readCached(f *os.File, p []byte, off int64) int {
	n, err := unix.Preadv2(int(f.Fd()), [][]byte{p}, off, unix.RWF_NOWAIT)
	if err != nil {
		return 0
	}
	return n
}
