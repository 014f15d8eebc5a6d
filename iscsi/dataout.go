package iscsi

import (
	"errors"

	"yester/iscsi/pdu"
)

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

// outAvailable returns how many bytes of data-out the initiator will give.
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
