package iscsi

import (
	"context"
	"errors"
	"sync"
	"time"

	"yester/internal/block"
	"yester/iscsi/pdu"
	"yester/iscsi/scsi"
)

// task is one SCSI command under way.
type task struct {
	c       *conn
	itt     uint32
	lun     uint64
	op      byte
	edtl    int64 // expected data transfer length
	reads   bool  // R bit
	writes  bool  // W bit
	counted bool  // against the command window
	began   time.Time
	job     scsi.Job

	sent   int64 // bytes of data-in queued
	dataSN uint32
	burst  int // bytes of the data-in sequence under way

	gone bool // finished or aborted: sends nothing more; guarded by conn.outMu

	ctx    context.Context
	cancel context.CancelFunc

	immediate *buffer // data-out that came with the command

	rxMu sync.Mutex // held while the reading goroutine fills rx.buf
	rx   receive
}

// receive is the data-out burst that a task waits for.
type receive struct {
	ttt    uint32 // 0: none
	buf    []byte
	base   uint32 // buffer offset of buf[0]
	got    int
	dataSN uint32
	err    error
	done   chan struct{}
}

var errSequence = errors.New("data-out out of sequence")

// command takes a SCSI command: what needs no waiting is answered here and now,
// the rest goes to a worker.
func (c *conn) command(h *pdu.Header, seg segment) error {
	t := &c.inline
	*t = task{
		c: c, itt: h.ITT(), lun: h.LUN(), op: h.CDB()[0], edtl: int64(h.EDTL()),
		reads: h.Flags()&pdu.CommandRead != 0, writes: h.Flags()&pdu.CommandWrite != 0, counted: !h.Immediate(),
	}
	if c.srv.opts.Metrics != nil {
		t.began = time.Now()
	}
	c.stats.commands.Add(1)
	c.nexus.Prepare(t.lun, h.CDB(), &t.job)
	if t.job.Work != nil || t.job.Chunk != nil {
		return c.startWork(h, seg)
	}
	if err := seg.discard(); err != nil { // data nobody asked for
		return err
	}
	if t.job.ReadLen > 0 && t.reads && t.edtl > 0 {
		if !c.readNow(t) {
			return c.startWork(h, segment{})
		}
		return nil
	}
	c.respond(t)
	return nil
}

// startWork copies the inline task into one of its own and hands it to a worker.
func (c *conn) startWork(h *pdu.Header, seg segment) error {
	t := &task{}
	in := &c.inline
	t.c, t.itt, t.lun, t.op, t.edtl, t.reads, t.writes = in.c, in.itt, in.lun, in.op, in.edtl, in.reads, in.writes
	t.counted, t.began, t.job = in.counted, in.began, in.job
	if seg.n > 0 && t.writes {
		t.immediate = c.srv.buffers.get(seg.n)
		if err := seg.read(t.immediate.b); err != nil {
			if !errors.Is(err, pdu.ErrDataDigest) {
				return err
			}
			t.job.FailTransport(true)
			c.respond(t)
			return nil
		}
	} else if err := seg.discard(); err != nil {
		return err
	}
	t.ctx, t.cancel = context.WithCancel(c.ctx)
	c.tasksMu.Lock()
	_, dup := c.tasks[t.itt]
	full := len(c.tasks) >= c.srv.limits.Commands+immediateTasks
	if !dup && !full {
		c.tasks[t.itt] = t
	}
	c.tasksMu.Unlock()
	if dup || full {
		t.cancel()
		c.srv.buffers.put(t.immediate)
		if t.counted {
			c.outstanding.Add(-1)
		}
		reason := byte(pdu.RejectProtocol) // a tag in use
		if full {
			reason = pdu.RejectImmediate
		}
		c.reject(h, reason)
		return nil
	}
	c.submit(t)
	return nil
}

// immediateTasks is how many commands beyond the window may be under way, which
// only immediate ones can be.
const immediateTasks = 16

// submit gives a task to a worker, or queues it when all are busy. The queue is
// bounded by the number of tasks.
func (c *conn) submit(t *task) {
	c.workMu.Lock()
	defer c.workMu.Unlock()
	if c.workers >= c.srv.limits.Workers {
		c.queue = append(c.queue, t)
		return
	}
	c.workers++
	c.work.Add(1)
	go c.worker(t)
}

func (c *conn) worker(t *task) {
	defer c.work.Done()
	for t != nil {
		err := c.guarded(func() error { t.run(); return nil })
		c.finish(t)
		if err != nil {
			c.fail(err)
		}
		c.workMu.Lock()
		if len(c.queue) > 0 {
			t = c.queue[0]
			c.queue[0] = nil
			c.queue = c.queue[1:]
		} else {
			t = nil
			c.workers--
		}
		c.workMu.Unlock()
	}
}

// finish takes a task out of the register.
func (c *conn) finish(t *task) {
	t.cancel()
	c.tasksMu.Lock()
	if c.tasks[t.itt] == t {
		delete(c.tasks, t.itt)
	}
	c.tasksMu.Unlock()
	t.rxMu.Lock() // the reading goroutine may be filling a buffer of it
	t.rx = receive{}
	t.rxMu.Unlock()
	c.srv.buffers.put(t.immediate)
	t.immediate = nil
}

// run is a task's life on a worker.
func (t *task) run() {
	if t.ctx.Err() != nil {
		return
	}
	switch {
	case t.job.Exact && (!t.writes || t.edtl != t.job.OutLen):
		t.job.Refuse()
	case t.job.Chunk != nil:
		t.runChunks()
	case t.job.Work != nil:
		t.runWork()
	default:
		t.runRead()
		return
	}
	t.c.finishAnd(t, func() { t.c.respond(t) })
	t.c.flush()
}

// finishAnd makes the tag free before the answer can reach the initiator, which
// may use it again at once.
func (c *conn) finishAnd(t *task, answer func()) {
	c.tasksMu.Lock()
	if c.tasks[t.itt] == t {
		delete(c.tasks, t.itt)
	}
	c.tasksMu.Unlock()
	answer()
}

// expected returns how many bytes of data-out the initiator will give.
func (t *task) outAvailable() int64 {
	if !t.writes {
		return 0
	}
	return min(t.job.OutLen, t.edtl)
}

func (t *task) runWork() {
	n := t.outAvailable()
	if n < t.job.OutLen {
		// A parameter list or a pattern cut short can't be acted on.
		t.job.Refuse()
		return
	}
	var data []byte
	if n > 0 {
		if !t.c.memory.take(n) {
			return
		}
		defer t.c.memory.give(n)
		b := t.c.srv.buffers.get(int(n))
		defer t.release(b)
		if !t.fetch(b.b, 0) {
			return
		}
		data = b.b
	}
	t.job.Work(t.ctx, &t.job, data)
}

// release gives a buffer back that the reading goroutine may have been filling.
func (t *task) release(b *buffer) {
	t.rxMu.Lock()
	t.rx = receive{}
	t.rxMu.Unlock()
	t.c.srv.buffers.put(b)
}

func (t *task) runChunks() {
	total := t.outAvailable()
	step := int64(min(t.c.maxBurst, 256<<10))
	step -= step % 4096
	step = max(step, 4096)
	if total == 0 || !t.c.memory.take(step) {
		return
	}
	defer t.c.memory.give(step)
	b := t.c.srv.buffers.get(int(step))
	defer t.release(b)
	for off := int64(0); off < total; off += step {
		p := b.b[:min(step, total-off)]
		if !t.fetch(p, off) || !t.job.Chunk(t.ctx, &t.job, p, off) {
			return
		}
	}
}

// fetch fills p with the data-out from off on. When it is false, the job has its
// outcome or the task is gone.
func (t *task) fetch(p []byte, off int64) bool {
	if t.immediate != nil && off < int64(len(t.immediate.b)) {
		k := copy(p, t.immediate.b[off:])
		p, off = p[k:], off+int64(k)
	}
	for len(p) > 0 {
		n := min(len(p), t.c.maxBurst)
		done := make(chan struct{})
		ttt := t.c.newTTT()
		t.rxMu.Lock()
		t.rx = receive{ttt: ttt, buf: p[:n], base: uint32(off), done: done}
		t.rxMu.Unlock()
		o := t.c.newPDU(pdu.OpR2T, pdu.FlagFinal)
		h := o.header()
		h.SetLUN(t.lun)
		h.SetITT(t.itt)
		h.SetTTT(ttt)
		h.SetDataSN(t.dataSN)
		h.SetBufferOffset(uint32(off))
		h.SetResidual(uint32(n))
		t.dataSN++
		t.c.send(t, o)
		select {
		case <-done:
		case <-t.ctx.Done():
			return false
		}
		t.rxMu.Lock()
		err := t.rx.err
		t.rx = receive{}
		t.rxMu.Unlock()
		if err != nil {
			t.job.FailTransport(errors.Is(err, pdu.ErrDataDigest))
			return false
		}
		p, off = p[n:], off+int64(n)
	}
	return true
}

// dataOut takes a Data-Out. One that nobody waits for belongs to a command that
// was refused or aborted: it is read and forgotten, so that the stream stays in
// step.
func (c *conn) dataOut(h *pdu.Header, seg segment) error {
	c.tasksMu.Lock()
	t := c.tasks[h.ITT()]
	c.tasksMu.Unlock()
	if t == nil {
		return seg.discard()
	}
	t.rxMu.Lock()
	defer t.rxMu.Unlock()
	rx := &t.rx
	if rx.ttt == 0 || h.TTT() != rx.ttt || rx.err != nil {
		return seg.discard()
	}
	left := len(rx.buf) - rx.got
	if h.DataSN() != rx.dataSN || h.BufferOffset() != rx.base+uint32(rx.got) || seg.n > left || h.Final() != (seg.n == left) {
		rx.err = errSequence
		close(rx.done)
		return seg.discard()
	}
	err := seg.read(rx.buf[rx.got : rx.got+seg.n])
	if errors.Is(err, pdu.ErrDataDigest) {
		c.reject(h, pdu.RejectDataDigest)
		rx.err = err
		close(rx.done)
		return nil
	}
	if err != nil {
		return err
	}
	rx.got += seg.n
	rx.dataSN++
	c.stats.written.Add(int64(seg.n))
	if rx.got == len(rx.buf) {
		close(rx.done)
	}
	return nil
}

// readLen is how many bytes of a READ go to the initiator.
func (t *task) readLen() int64 { return min(t.job.ReadLen, t.edtl) }

// readNow answers a READ from the page cache or a hole, on the reading goroutine,
// without ever waiting for a disk. It is false when that can't be done.
func (c *conn) readNow(t *task) bool {
	l, ok := t.job.Medium.(*located)
	if !ok {
		return false
	}
	n := t.readLen()
	if n > maxChunk {
		return false
	}
	e, what := l.lookup(t.job.ReadOff, n)
	if what != inPlace {
		return false
	}
	if e.Zero {
		c.pushData(t, &buffer{b: zeros[:n], class: -1}, 0, true)
		return true
	}
	if n >= minSplice && c.canSplice(n) && resident(e, n) {
		if p := c.srv.pipes.get(); p != nil {
			if p.fits(e.Off, int(n)) && p.fill(e.File, e.Off, int(n)) == nil {
				c.pushPiped(t, p, int(n), true)
				return true
			}
			c.srv.pipes.put(p)
			return false
		}
	}
	b := c.srv.buffers.get(int(n))
	if readCached(e.File, b.b, e.Off) != int(n) {
		c.srv.buffers.put(b)
		return false
	}
	c.pushData(t, b, 0, true)
	return true
}

// resident guesses whether a range of a file is in the page cache: its first and
// last byte are.
func resident(e block.Extent, n int64) bool {
	var b [1]byte
	return readCached(e.File, b[:], e.Off) == 1 && readCached(e.File, b[:], e.Off+n-1) == 1
}

// canSplice: data digests have to see the bytes, and padding has no place in a pipe.
func (c *conn) canSplice(n int64) bool {
	return c.splice != nil && !c.dataDigest && n%4 == 0
}

// runRead is a READ on a worker.
func (t *task) runRead() {
	c := t.c
	total := t.readLen()
	for off := int64(0); off < total; {
		n := min(total-off, maxChunk)
		if t.ctx.Err() != nil || !t.readChunk(off, n, off+n == total) {
			break
		}
		off += n
		c.flush()
	}
	if t.job.Status != scsi.StatusGood {
		c.finishAnd(t, func() { c.respond(t) })
		c.flush()
	}
}

// readChunk sends n bytes; when it is false the job has failed or the session has.
func (t *task) readChunk(off, n int64, last bool) bool {
	c := t.c
	at := t.job.ReadOff + off
	l, _ := t.job.Medium.(*located)
	if l != nil {
		e, what := l.lookup(at, n)
		if what == unknown {
			l.learn(t.ctx, at)
			e, what = l.lookup(at, n)
		}
		if what == inPlace && e.File != nil && n >= minSplice && c.canSplice(n) {
			if p := c.srv.pipes.get(); p != nil {
				if p.fits(e.Off, int(n)) && p.fill(e.File, e.Off, int(n)) == nil {
					if last {
						c.finishAnd(t, func() { c.pushPiped(t, p, int(n), true) })
					} else {
						c.pushPiped(t, p, int(n), false)
					}
					return true
				}
				// Reading it plainly tells what is wrong, and where.
				c.srv.pipes.put(p)
			}
		}
	}
	if !c.memory.take(n) {
		return false
	}
	b := c.srv.buffers.get(int(n))
	if bad, err := scsi.ReadMedium(t.ctx, t.job.Medium, b.b, at); err != nil {
		c.srv.buffers.put(b)
		c.memory.give(n)
		if t.ctx.Err() != nil {
			return false
		}
		c.srv.log.Error("iscsi: read failed", "target", c.key.target, "lun", t.lun>>48, "offset", at, "length", n, "at", bad, "error", err)
		t.job.FailRead(bad)
		return false
	}
	if last {
		c.finishAnd(t, func() { c.pushData(t, b, n, true) })
	} else {
		c.pushData(t, b, n, false)
	}
	return true
}

// dataIn makes the header of the next Data-In with at most left bytes.
func (t *task) dataIn(left int, last bool) (*outPDU, int) {
	c := t.c
	n := min(left, c.sendSegment, maxSend, c.maxBurst-t.burst)
	o := c.newPDU(pdu.OpDataIn, 0)
	h := o.header()
	h.SetLUN(t.lun)
	h.SetITT(t.itt)
	h.SetTTT(pdu.NoTag)
	h.SetDataSN(t.dataSN)
	h.SetBufferOffset(uint32(t.sent))
	t.dataSN++
	t.sent += int64(n)
	if t.burst += n; t.burst == c.maxBurst {
		t.burst = 0
		h.SetFlags(pdu.FlagFinal)
	}
	if last && n == left {
		flags, residual := t.residual()
		h.SetFlags(pdu.FlagFinal | pdu.DataStatus | flags)
		h.SetResidual(residual)
		o.status, o.final = true, true
	}
	return o, n
}

// pushData queues a buffer as Data-In; with last, status included.
func (c *conn) pushData(t *task, b *buffer, cost int64, last bool) {
	var few [4]*outPDU
	list := few[:0]
	data := b.b
	c.stats.read.Add(int64(len(data)))
	if last {
		c.note(t, int64(len(data)))
	}
	for len(data) > 0 {
		o, n := t.dataIn(len(data), last)
		c.setData(o, data[:n])
		data = data[n:]
		list = append(list, o)
	}
	list[len(list)-1].buf, list[len(list)-1].cost = b, cost
	c.push(t, list...)
}

// pushPiped queues n bytes that lie in a pipe.
func (c *conn) pushPiped(t *task, p *pipe, n int, last bool) {
	var few [4]*outPDU
	list := few[:0]
	c.stats.read.Add(int64(n))
	if last {
		c.note(t, int64(n))
	}
	for n > 0 {
		o, k := t.dataIn(n, last)
		o.header().SetDataLen(k)
		o.pipe, o.piped = p, k
		n -= k
		list = append(list, o)
	}
	list[len(list)-1].last = true
	c.push(t, list...)
}

// residual compares what the command moves with what the initiator expected.
// RFC 7143 section 11.4.5.
func (t *task) residual() (flags byte, count uint32) {
	moved := t.sent
	if t.job.Status == scsi.StatusGood {
		moved = max(t.job.ReadLen, t.job.OutLen, int64(len(t.job.In)))
	}
	expected := t.edtl
	if !t.reads && !t.writes {
		expected = 0
	}
	switch {
	case moved > expected:
		return pdu.FlagOverflow, uint32(moved - expected)
	case moved < expected:
		return pdu.FlagUnderflow, uint32(expected - moved)
	}
	return 0, 0
}

// respond queues the outcome of a job that isn't a successful READ.
func (c *conn) respond(t *task) {
	j := &t.job
	if in := j.In; len(in) > 0 && j.Status == scsi.StatusGood && t.reads && t.edtl > 0 {
		b := &buffer{b: in[:min(int64(len(in)), t.edtl)], class: -1}
		c.pushData(t, b, 0, true)
		return
	}
	o := c.newPDU(pdu.OpResponse, 0)
	h := o.header()
	h.SetITT(t.itt)
	flags, residual := t.residual()
	h.SetFlags(pdu.FlagFinal | flags)
	h.SetResponse(0, j.Status)
	h.SetResidual(residual)
	h.SetDataSN(t.dataSN)
	o.status, o.final = true, true
	if len(j.Sense) > 0 {
		s := make([]byte, 2, 2+len(j.Sense))
		s[1] = byte(len(j.Sense))
		c.setData(o, append(s, j.Sense...))
	}
	c.note(t, t.sent)
	c.push(t, o)
}

// note tells the metrics of a command that is done.
func (c *conn) note(t *task, moved int64) {
	if m := c.srv.opts.Metrics; m != nil {
		m.Command(t.op, t.job.Status, max(moved, t.job.OutLen), time.Since(t.began))
	}
}
