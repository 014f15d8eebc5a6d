package rdiff

import "io"

// aheadParts and aheadSize are how many pieces of how many bytes are decompressed
// while those before are parsed.
const (
	aheadParts = 3
	aheadSize  = 128 << 10
)

// readAhead reads from in on a goroutine of its own.
type readAhead struct {
	full  chan piece
	empty chan []byte
	quit  chan struct{}
	done  chan struct{} // closed once in isn't read any more
	cur   piece
	left  []byte
}

type piece struct {
	buf []byte
	err error
}

func newReadAhead(in io.Reader) *readAhead {
	a := &readAhead{full: make(chan piece, aheadParts), empty: make(chan []byte, aheadParts),
		quit: make(chan struct{}), done: make(chan struct{})}
	for range aheadParts {
		a.empty <- make([]byte, aheadSize)
	}
	go a.run(in)
	return a
}

func (a *readAhead) run(in io.Reader) {
	defer close(a.done)
	for {
		var b []byte
		select {
		case b = <-a.empty:
		case <-a.quit:
			return
		}
		n, err := 0, error(nil)
		for n < len(b) && err == nil {
			var k int
			k, err = in.Read(b[n:])
			n += k
		}
		a.full <- piece{b[:n], err} // there is room for as many as there are
		if err != nil {
			return
		}
	}
}

// Read implements io.Reader.
func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			a.empty <- a.cur.buf[:cap(a.cur.buf)]
		}
		a.cur = <-a.full
		a.left = a.cur.buf
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// stop returns when in isn't read any more. What was read ahead is lost.
func (a *readAhead) stop() {
	close(a.quit)
	<-a.done
}
