package iscsi

import (
	"yester/internal/block"
	"yester/iscsi/pdu"
	"yester/iscsi/scsi"
)

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
	if n >= minSplice && c.canSplice(n) && pipeable(e) && resident(e, n) {
		if p := c.srv.pipes.get(); p != nil {
			if p.fits(e.Off, int(n)) && p.fill(e.File, e.Off, int(n)) == nil {
				if l.holds(t.job.ReadOff, n, e) {
					c.pushPiped(t, p, int(n), true)
					return true
				}
				p.spoilt = true
			}
			c.srv.pipes.put(p)
			return false
		}
	}
	b := c.srv.buffers.get(int(n))
	if readCached(e.File, b.b, e.Off) != int(n) || !l.holds(t.job.ReadOff, n, e) {
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

// pipeable reports whether the bytes of e may be sent from a pipe. Those of a cache
// may not: a block that is evicted while its pages wait in the pipe, or in the
// socket for a slow initiator's acknowledgement, would be sent as zeros.
func pipeable(e block.Extent) bool { return e.Stamp == 0 }

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
		if what == inPlace && e.File != nil && n >= minSplice && c.canSplice(n) && pipeable(e) {
			if p := c.srv.pipes.get(); p != nil {
				if p.fits(e.Off, int(n)) && p.fill(e.File, e.Off, int(n)) == nil {
					if l.holds(at, n, e) {
						if last {
							c.finishAnd(t, func() { c.pushPiped(t, p, int(n), true) })
						} else {
							c.pushPiped(t, p, int(n), false)
						}
						return true
					}
					p.spoilt = true
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
