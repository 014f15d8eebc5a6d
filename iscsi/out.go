package iscsi

import (
	"encoding/binary"
	"net"

	"yester/iscsi/pdu"
)

// Bounds of what waits to be sent.
const (
	// flushBytes is how much the reading goroutine gathers before it sends.
	flushBytes = 256 << 10
	// maxQueued bounds the PDUs waiting for a peer that sends requests and takes
	// no answers; the reading goroutine then waits with it.
	maxQueued      = 4096
	maxQueuedBytes = 8 << 20 // more than Limits.Memory: reads alone never reach it
)

// outPDU is a PDU on its way out. Data lie in data or, for reads of a host file
// without digests, in a pipe.
type outPDU struct {
	raw    [pdu.HeaderLen + pdu.DigestLen]byte
	tail   [3 + pdu.DigestLen]byte // padding and data digest
	tailN  int
	data   []byte
	buf    *buffer // given back when sent; the last PDU of a buffer has it
	pipe   *pipe
	piped  int  // bytes of data in pipe
	last   bool // of the pipe
	cost   int64
	status bool // takes a StatSN
	final  bool // ends its task
}

func (o *outPDU) header() *pdu.Header { return (*pdu.Header)(o.raw[:pdu.HeaderLen]) }

func (c *conn) newPDU(op pdu.Op, flags byte) *outPDU {
	o, _ := c.srv.pdus.Get().(*outPDU)
	if o == nil {
		o = new(outPDU)
	} else {
		*o = outPDU{}
	}
	h := o.header()
	h.SetOp(op)
	h.SetFlags(flags)
	return o
}

// setData makes data the PDU's data segment; it isn't copied.
func (c *conn) setData(o *outPDU, data []byte) {
	o.data = data
	o.header().SetDataLen(len(data))
	o.tailN = pdu.Padding(len(data))
	if c.digestsOn && c.dataDigest && len(data) > 0 {
		crc := pdu.CRC(pdu.CRC(0, data), o.tail[:o.tailN])
		binary.LittleEndian.PutUint32(o.tail[o.tailN:], crc)
		o.tailN += pdu.DigestLen
	}
}

func (c *conn) release(o *outPDU) {
	if o.buf != nil {
		c.srv.buffers.put(o.buf)
	}
	if o.pipe != nil && o.last {
		c.srv.pipes.put(o.pipe)
	}
	if o.cost > 0 {
		c.memory.give(o.cost)
	}
	o.data, o.buf, o.pipe = nil, nil, nil
	c.srv.pdus.Put(o)
}

// drop gives back a PDU that won't be sent.
func (c *conn) drop(o *outPDU) {
	if o.pipe != nil {
		o.pipe.spoilt = true
	}
	c.release(o)
}

// push queues PDUs, in order and without others between them. t is the task they
// belong to, or nil; those of a task that is gone, and those of a lost
// connection, are dropped, and push is false.
func (c *conn) push(t *task, list ...*outPDU) bool {
	c.outMu.Lock()
	if c.outErr != nil || t != nil && t.gone {
		c.outMu.Unlock()
		for _, o := range list {
			c.drop(o)
		}
		return false
	}
	for _, o := range list {
		h := o.header()
		if o.final && t != nil {
			t.gone = true
			if t.counted {
				c.outstanding.Add(-1)
			}
		}
		if o.status {
			h.SetStatSN(c.statSN)
			c.statSN++
		} else if op := h.Op(); op == pdu.OpR2T || op == pdu.OpNopIn {
			h.SetStatSN(c.statSN) // the next one, not taken
		}
		h.SetWindow(c.window())
		if c.digestsOn && c.headerDigest {
			binary.LittleEndian.PutUint32(o.raw[pdu.HeaderLen:], pdu.CRC(0, o.raw[:pdu.HeaderLen]))
		}
		c.out = append(c.out, o)
		c.outBytes += len(o.data) + o.piped
	}
	c.outMu.Unlock()
	return true
}

// window returns ExpCmdSN and MaxCmdSN; outMu is held. MaxCmdSN never falls.
func (c *conn) window() (exp, top uint32) {
	exp = c.expCmdSN.Load()
	top = exp + uint32(int32(c.srv.limits.Commands)-min(c.outstanding.Load(), int32(c.srv.limits.Commands))) - 1
	if c.windowSet && pdu.Before(top, c.maxCmdSN.Load()) {
		top = c.maxCmdSN.Load()
	}
	c.windowSet = true
	c.maxCmdSN.Store(top)
	return exp, top
}

// send queues PDUs and sends what is queued.
func (c *conn) send(t *task, list ...*outPDU) {
	if c.push(t, list...) {
		c.flush()
	}
}

// flush sends what is queued, unless another goroutine is at it: that one then
// takes it along.
func (c *conn) flush() {
	c.outMu.Lock()
	if c.writing || len(c.out) == 0 {
		c.outMu.Unlock()
		return
	}
	c.writing = true
	for len(c.out) > 0 && c.outErr == nil {
		batch := c.out
		c.out, c.outBytes = c.spare[:0], 0
		c.outMu.Unlock()
		err := c.write(batch)
		for i, o := range batch {
			if err != nil {
				c.drop(o) // what was sent of it doesn't matter any more
			} else {
				c.release(o)
			}
			batch[i] = nil
		}
		c.outMu.Lock()
		c.spare = batch[:0]
		if err != nil && c.outErr == nil {
			c.outErr = err
		}
		c.outCond.Broadcast()
	}
	c.writing = false
	failed := c.outErr
	c.outCond.Broadcast()
	c.outMu.Unlock()
	if failed != nil {
		c.fail(failed)
	}
}

// throttle makes the reading goroutine wait while too much is queued.
func (c *conn) throttle() {
	c.outMu.Lock()
	over := func() bool { return len(c.out) > maxQueued || c.outBytes > maxQueuedBytes }
	full, big := over(), c.outBytes > flushBytes
	for over() && c.writing && c.outErr == nil {
		c.outCond.Wait()
	}
	c.outMu.Unlock()
	if full || big {
		c.flush()
	}
}

// drained waits until everything queued has been sent or the connection failed.
func (c *conn) drained() {
	c.flush()
	c.outMu.Lock()
	for (c.writing || len(c.out) > 0) && c.outErr == nil {
		c.outCond.Wait()
	}
	c.outMu.Unlock()
}

// dropQueue gives back what will never be sent.
func (c *conn) dropQueue(err error) {
	c.outMu.Lock()
	if c.outErr == nil {
		c.outErr = err
	}
	var left []*outPDU
	if !c.writing {
		left, c.out = c.out, nil
	}
	c.outCond.Broadcast()
	c.outMu.Unlock()
	for _, o := range left {
		c.drop(o)
	}
}

// write sends a batch: as much as possible by one writev, and what lies in pipes
// by splice. Only one goroutine is in it at a time.
func (c *conn) write(batch []*outPDU) error {
	c.writeSince.Store(c.srv.clock())
	defer c.writeSince.Store(0)
	n := pdu.HeaderLen
	if c.digestsOn && c.headerDigest {
		n += pdu.DigestLen
	}
	iov := c.iov[:0]
	for _, o := range batch {
		if o.header().Op() == pdu.OpLoginResp {
			iov = append(iov, o.raw[:pdu.HeaderLen])
		} else {
			iov = append(iov, o.raw[:n])
		}
		if o.pipe != nil {
			if err := c.writeBuffers(iov[:len(iov)-1]); err != nil {
				return err
			}
			iov = iov[:0]
			if err := c.splice.send(o.raw[:n], o.pipe, o.piped); err != nil {
				return err
			}
			continue
		}
		if len(o.data) > 0 {
			iov = append(iov, o.data)
		}
		if o.tailN > 0 {
			iov = append(iov, o.tail[:o.tailN])
		}
	}
	err := c.writeBuffers(iov)
	clear(iov[:cap(iov)])
	c.iov = iov[:0]
	return err
}

func (c *conn) writeBuffers(iov [][]byte) error {
	if len(iov) == 0 {
		return nil
	}
	if len(iov) == 1 {
		_, err := c.nc.Write(iov[0])
		return err
	}
	c.bufs = net.Buffers(iov)
	_, err := c.bufs.WriteTo(c.nc)
	return err
}
