package iscsi

import (
	"context"
	"errors"
	"sync"
	"time"

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
