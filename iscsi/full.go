package iscsi

import (
	"errors"
	"fmt"

	"yester/iscsi/pdu"
)

// maxHeldBytes bounds the data of requests that came before their turn.
const maxHeldBytes = 1 << 20

// heldPDU is a request that waits for the ones numbered before it.
type heldPDU struct {
	h    pdu.Header
	data []byte
}

// segment is the data segment of a request: still in the connection, or held.
type segment struct {
	r    *pdu.Reader
	held []byte
	n    int
}

// read takes the whole segment into dst, whose length is n.
func (s *segment) read(dst []byte) error {
	if s.r == nil {
		copy(dst, s.held)
		return nil
	}
	return s.r.Data(dst)
}

func (s *segment) discard() error {
	if s.r == nil {
		return nil
	}
	return s.r.Discard()
}

// serve is the full feature phase: it reads requests until the session ends.
// Whatever may wait for a disk or a network runs elsewhere, so that pings and
// aborts are always heard.
func (c *conn) serve() error {
	c.r.BeforeWait = c.flush
	var h pdu.Header
	for {
		if _, err := c.r.Next(&h); err != nil {
			return err
		}
		c.received.Add(1)
		seg := segment{r: c.r, n: h.DataLen()}
		if err := c.request(&h, seg); err != nil {
			if errors.Is(err, errLoggedOut) || errors.Is(err, errColdReset) {
				c.drained()
			}
			return err
		}
		for len(c.held) > 0 {
			p, ok := c.held[c.expCmdSN.Load()]
			if !ok {
				break
			}
			delete(c.held, c.expCmdSN.Load())
			c.heldBytes -= len(p.data)
			c.expCmdSN.Add(1)
			if err := c.deliver(&p.h, segment{held: p.data, n: len(p.data)}); err != nil {
				if errors.Is(err, errLoggedOut) || errors.Is(err, errColdReset) {
					c.drained()
				}
				return err
			}
		}
		c.throttle()
	}
}

// request puts a request into its order. RFC 7143 section 4.2.2.1.
func (c *conn) request(h *pdu.Header, seg segment) error {
	switch h.Op() {
	case pdu.OpDataOut: // these have no CmdSN
		return c.dataOut(h, seg)
	case pdu.OpSNACK:
		c.reject(h, pdu.RejectSNACK) // nothing is ever sent again at level 0
		return seg.discard()
	case pdu.OpNopOut, pdu.OpCommand, pdu.OpTaskReq, pdu.OpTextReq, pdu.OpLogoutReq:
	default:
		// A request whose numbering is unknown: the stream stays in step, the
		// session may not.
		c.reject(h, pdu.RejectUnsupported)
		return seg.discard()
	}
	if h.Immediate() {
		return c.deliver(h, seg)
	}
	sn, exp := h.CmdSN(), c.expCmdSN.Load()
	switch {
	case sn == exp:
		// The window is checked before the number advances: a request beyond it is
		// as if it had never come.
		if pdu.Before(c.maxCmdSN.Load(), sn) {
			return seg.discard()
		}
		if h.Op() == pdu.OpCommand {
			c.outstanding.Add(1)
		}
		c.expCmdSN.Add(1)
		return c.deliver(h, seg)
	case pdu.Before(exp, sn) && !pdu.Before(c.maxCmdSN.Load(), sn):
		if _, dup := c.held[sn]; dup {
			return seg.discard()
		}
		if c.heldBytes += seg.n; c.heldBytes > maxHeldBytes {
			return errors.New("too much data out of order")
		}
		p := heldPDU{h: *h, data: make([]byte, seg.n)}
		if err := seg.read(p.data); err != nil {
			return err
		}
		if c.held == nil {
			c.held = map[uint32]heldPDU{}
		}
		c.held[sn] = p
		if h.Op() == pdu.OpCommand {
			c.outstanding.Add(1)
		}
		return nil
	}
	return seg.discard() // outside the window: ignored
}

// deliver carries out a request whose turn it is.
func (c *conn) deliver(h *pdu.Header, seg segment) error {
	switch h.Op() {
	case pdu.OpCommand:
		if c.discovery {
			if !h.Immediate() {
				c.outstanding.Add(-1)
			}
			c.reject(h, pdu.RejectProtocol)
			return seg.discard()
		}
		return c.command(h, seg)
	case pdu.OpNopOut:
		return c.nopOut(h, seg)
	case pdu.OpTaskReq:
		if err := seg.discard(); err != nil {
			return err
		}
		if c.discovery {
			c.reject(h, pdu.RejectProtocol)
			return nil
		}
		return c.taskRequest(h)
	case pdu.OpTextReq:
		return c.textRequest(h, seg)
	case pdu.OpLogoutReq:
		if err := seg.discard(); err != nil {
			return err
		}
		return c.logout(h)
	}
	return seg.discard()
}

// nopOut echoes a ping. One without a task tag answers a ping of ours: that it
// came was noted.
func (c *conn) nopOut(h *pdu.Header, seg segment) error {
	if h.ITT() == pdu.NoTag {
		return seg.discard()
	}
	o := c.newPDU(pdu.OpNopIn, pdu.FlagFinal)
	r := o.header()
	r.SetLUN(h.LUN())
	r.SetITT(h.ITT())
	r.SetTTT(pdu.NoTag)
	o.status = true
	if seg.n > 0 {
		o.buf = c.srv.buffers.get(seg.n)
		if err := seg.read(o.buf.b); err != nil {
			c.release(o)
			if errors.Is(err, pdu.ErrDataDigest) {
				c.reject(h, pdu.RejectDataDigest)
				return nil
			}
			return err
		}
		c.setData(o, o.buf.b[:min(seg.n, c.sendSegment)])
	}
	c.push(nil, o)
	return nil
}

// reject answers a PDU that can't be processed with its own header.
func (c *conn) reject(h *pdu.Header, reason byte) {
	o := c.newPDU(pdu.OpReject, pdu.FlagFinal)
	r := o.header()
	r.SetResponse(reason, 0)
	r.SetITT(pdu.NoTag)
	o.status = true
	c.setData(o, append([]byte(nil), h[:]...))
	c.push(nil, o)
	c.srv.log.Debug("iscsi: rejected", "initiator", c.initiator, "from", c.from, "pdu", h.Op(), "reason", fmt.Sprintf("%#02x", reason))
}

// logout ends the session; its scratch layers are thrown away.
// RFC 7143 sections 11.14, 11.15.
func (c *conn) logout(h *pdu.Header) error {
	o := c.newPDU(pdu.OpLogoutResp, pdu.FlagFinal)
	r := o.header()
	r.SetITT(h.ITT())
	r.SetLogoutTimes(2, 0)
	o.status = true
	reason := h.Flags() &^ pdu.FlagFinal
	switch {
	case reason == pdu.LogoutRecovery:
		r.SetResponse(pdu.LogoutNoRecovery, 0)
		c.push(nil, o)
		return nil
	case reason == pdu.LogoutConnection && h.CID() != c.cid:
		r.SetResponse(pdu.LogoutNoCID, 0)
		c.push(nil, o)
		return nil
	case reason > pdu.LogoutRecovery:
		c.release(o)
		c.reject(h, pdu.RejectInvalidField)
		return nil
	}
	c.abortTasks(func(*task) bool { return true })
	c.loggedOut.Store(true)
	c.push(nil, o)
	return errLoggedOut
}
