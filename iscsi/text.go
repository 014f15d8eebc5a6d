package iscsi

import (
	"net"
	"slices"
	"strings"

	"yester/iscsi/pdu"
)

// Bounds of text in the full feature phase.
const (
	maxTextRequest  = 64 << 10
	maxTextResponse = 4 << 20 // some 30,000 targets
)

// textState is a Text exchange under way: a request that goes on, or a response
// that does. RFC 7143 sections 11.10, 11.11.
type textState struct {
	request []byte
	rest    []byte
	ttt     uint32 // of the response that goes on; 0: none
}

func (c *conn) textRequest(h *pdu.Header, seg segment) error {
	data := make([]byte, seg.n)
	if err := seg.read(data); err != nil {
		if err == pdu.ErrDataDigest {
			c.reject(h, pdu.RejectDataDigest)
			return nil
		}
		return err
	}
	x := &c.text
	if h.TTT() != pdu.NoTag {
		// More of a response, or of a request.
		if x.ttt == 0 || h.TTT() != x.ttt {
			*x = textState{}
			c.reject(h, pdu.RejectProtocol)
			return nil
		}
		if len(x.rest) > 0 {
			c.textRespond(h, x.rest)
			return nil
		}
	} else {
		*x = textState{} // a new exchange ends an old one
	}
	if len(x.request)+len(data) > maxTextRequest {
		*x = textState{}
		c.reject(h, pdu.RejectOutOfResource)
		return nil
	}
	x.request = append(x.request, data...)
	if h.Flags()&pdu.FlagContinue != 0 {
		x.ttt = c.newTTT()
		o := c.textPDU(h)
		o.header().SetTTT(x.ttt)
		c.push(nil, o)
		return nil
	}
	pairs, err := pdu.ParseText(x.request)
	x.request = nil
	if err != nil {
		*x = textState{}
		c.reject(h, pdu.RejectProtocol)
		return nil
	}
	var out []byte
	for _, p := range pairs {
		switch p.Key {
		case "SendTargets":
			out = c.sendTargets(out, p.Value)
		case "MaxRecvDataSegmentLength":
			// Allowed here, but no initiator has a use for it, and commands under
			// way keep to the length they began with.
			out = pdu.AppendPair(out, p.Key, "Reject")
		default:
			out = pdu.AppendPair(out, p.Key, "NotUnderstood")
		}
	}
	c.textRespond(h, out)
	return nil
}

func (c *conn) textPDU(h *pdu.Header) *outPDU {
	o := c.newPDU(pdu.OpTextResp, 0)
	r := o.header()
	r.SetLUN(h.LUN())
	r.SetITT(h.ITT())
	r.SetTTT(pdu.NoTag)
	o.status = true
	return o
}

// textRespond sends text, or its beginning with a tag to ask for more.
func (c *conn) textRespond(h *pdu.Header, text []byte) {
	o := c.textPDU(h)
	r := o.header()
	n := min(len(text), c.sendSegment, ownSegment)
	c.setData(o, text[:n:n])
	c.text = textState{}
	if n < len(text) {
		c.text = textState{rest: text[n:], ttt: c.newTTT()}
		r.SetFlags(pdu.FlagContinue)
		r.SetTTT(c.text.ttt)
	} else {
		r.SetFlags(pdu.FlagFinal)
	}
	c.push(nil, o)
}

// sendTargets answers SendTargets. RFC 7143 appendix C: All in a discovery session,
// one name, or nothing for the target the session is with. The portal is the
// address that the initiator has reached us at.
func (c *conn) sendTargets(out []byte, which string) []byte {
	var names []string
	if c.discovery {
		c.srv.mu.Lock()
		for n := range c.srv.targets {
			if which == "All" || n == which {
				names = append(names, n)
			}
		}
		c.srv.mu.Unlock()
	} else {
		switch own := c.key.target; which {
		case "", own:
			names = []string{own}
		case "All":
			return pdu.AppendPair(out, "SendTargets", "Reject")
		}
	}
	slices.Sort(names)
	portal := portalAddress(c.nc.LocalAddr()) + "," + portalGroup
	for _, n := range names {
		if !c.maySee(n) {
			continue
		}
		if len(out) > maxTextResponse {
			c.srv.log.Warn("iscsi: too many targets to list", "from", c.from)
			break
		}
		out = pdu.AppendPair(out, "TargetName", n)
		out = pdu.AppendPair(out, "TargetAddress", portal)
	}
	return out
}

// maySee: discovery shows what a login would admit.
func (c *conn) maySee(target string) bool {
	if !c.srv.opts.ACL.admits(target, c.initiator, c.from) {
		return false
	}
	for i := range c.srv.opts.Auth.Users {
		if u := &c.srv.opts.Auth.Users[i]; c.user != "" && u.Name == c.user {
			return u.mayUse(target)
		}
	}
	return true
}

// portalAddress writes an address as RFC 7143 section 13.8 has it: IPv6 in
// brackets, without a zone, which means nothing to the other side.
func portalAddress(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return "127.0.0.1:3260"
	}
	s := t.String()
	if i := strings.IndexByte(s, '%'); i >= 0 {
		if j := strings.IndexByte(s, ']'); j > i {
			s = s[:i] + s[j:]
		}
	}
	return s
}
