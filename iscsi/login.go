package iscsi

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"yester/iscsi/pdu"
	"yester/iscsi/scsi"
)

// maxLoginPDUs bounds the exchanges of one login; the longest, mutual CHAP with
// continued text, needs a dozen.
const maxLoginPDUs = 64

// loginError ends a login with a status that the initiator is told.
type loginError struct {
	status uint16
	err    error
}

func (e *loginError) Error() string { return fmt.Sprintf("login refused (%#04x): %v", e.status, e.err) }
func (e *loginError) Unwrap() error { return e.err }

func refuse(status uint16, format string, args ...any) error {
	return &loginError{status, fmt.Errorf(format, args...)}
}

// loginState is the exchange under way.
type loginState struct {
	c       *conn
	started bool
	isid    [6]byte
	tsih    uint16
	cid     uint16
	itt     uint32
	stage   byte

	taken   int    // bytes of text taken in all
	text    []byte // continued request
	pending []byte // rest of a response that needs several PDUs
	transit bool   // what to do when pending is through
	nsg     byte

	known     bool // names and session type have been looked at
	target    string
	authNeed  bool
	authDone  bool
	chap      chap
	neg       negotiator
	groupTold bool
}

// login carries out the login phase. RFC 7143 section 6.3.
func (c *conn) login() error {
	l := &loginState{c: c, neg: negotiator{params: defaultParams(), seen: map[string]bool{}}}
	l.chap.auth = &c.srv.opts.Auth
	for range maxLoginPDUs {
		var h pdu.Header
		if _, err := c.r.Next(&h); err != nil {
			return err
		}
		if h.Op() != pdu.OpLoginReq {
			// Whoever hasn't logged in is told nothing.
			return fmt.Errorf("%v before login", h.Op())
		}
		if l.taken += pdu.HeaderLen + h.DataLen(); l.taken > c.srv.limits.LoginBytes {
			return errors.New("login too long")
		}
		data := make([]byte, h.DataLen())
		if err := c.r.Data(data); err != nil {
			return err
		}
		full, err := l.request(&h, data)
		var le *loginError
		if errors.As(err, &le) {
			l.refused(&h, le)
			return err
		}
		if err != nil {
			return err
		}
		if full {
			return nil
		}
	}
	return errors.New("login takes too many exchanges")
}

func (l *loginState) refused(h *pdu.Header, e *loginError) {
	c := l.c
	// Counted before it is answered: whoever has the answer may try again at once.
	if e.status == pdu.LoginAuthFailed && l.chap.hash != nil {
		c.srv.limiter.failed(c.from, time.Now())
	}
	if m := c.srv.opts.Metrics; m != nil {
		m.Login(e.status)
	}
	o := l.response(h)
	o.header().SetLoginStatus(e.status)
	c.send(nil, o)
	c.drained()
	c.srv.log.Warn("iscsi: login refused", "initiator", c.initiator, "from", c.from, "target", l.target,
		"status", fmt.Sprintf("%#04x", e.status), "reason", e.err)
}

func (l *loginState) response(h *pdu.Header) *outPDU {
	o := l.c.newPDU(pdu.OpLoginResp, 0)
	r := o.header()
	r.SetISID(h.ISID())
	r.SetTSIH(h.TSIH())
	r.SetITT(h.ITT())
	o.status = true
	return o
}

// request takes one Login request; full is true when the login is complete.
func (l *loginState) request(h *pdu.Header, data []byte) (full bool, err error) {
	c := l.c
	csg, nsg := h.Stages()
	transit, cont := h.Flags()&pdu.FlagTransit != 0, h.Flags()&pdu.FlagContinue != 0
	if !l.started {
		if _, lowest := h.Versions(); lowest > 0 {
			return false, refuse(pdu.LoginBadVersion, "initiator wants version %d or later", lowest)
		}
		if csg > pdu.StageOperational {
			return false, refuse(pdu.LoginInitiatorError, "login begins in stage %d", csg)
		}
		l.started = true
		l.isid, l.tsih, l.cid, l.itt, l.stage = h.ISID(), h.TSIH(), h.CID(), h.ITT(), csg
		c.expCmdSN.Store(h.CmdSN())
		c.outMu.Lock()
		c.statSN = h.ExpStatSN()
		c.outMu.Unlock()
	}
	switch {
	case h.ISID() != l.isid, h.TSIH() != l.tsih, h.CID() != l.cid, h.ITT() != l.itt:
		return false, refuse(pdu.LoginInvalidRequest, "login changes its identity on the way")
	case csg != l.stage:
		return false, refuse(pdu.LoginInitiatorError, "login in stage %d continues in stage %d", l.stage, csg)
	case transit && cont:
		return false, refuse(pdu.LoginInitiatorError, "transit with continued text")
	case transit && (nsg <= csg || nsg == 2):
		return false, refuse(pdu.LoginInitiatorError, "transit from stage %d to %d", csg, nsg)
	}
	if len(l.pending) > 0 {
		if len(data) > 0 {
			return false, refuse(pdu.LoginInitiatorError, "text in the middle of a continued response")
		}
		return l.answer(h, nil)
	}
	l.text = append(l.text, data...) // bounded by Limits.LoginBytes
	if cont {
		o := l.response(h)
		o.header().SetFlags(csg << 2)
		c.send(nil, o)
		return false, nil
	}
	pairs, err := pdu.ParseText(l.text)
	l.text = nil
	if err != nil {
		return false, refuse(pdu.LoginInitiatorError, "%w", err)
	}
	out, err := l.keys(pairs)
	if err != nil {
		return false, err
	}
	l.transit, l.nsg = transit, nsg
	if l.stage == pdu.StageSecurity && l.authNeed && !l.authDone {
		l.transit = false
	}
	return l.answer(h, out)
}

// answer sends text, in as many PDUs as it takes, and moves on to the next stage.
func (l *loginState) answer(h *pdu.Header, text []byte) (full bool, err error) {
	c := l.c
	text = append(l.pending, text...)
	l.pending = nil
	o := l.response(h)
	r := o.header()
	if len(text) > loginSegment {
		l.pending = append([]byte(nil), text[loginSegment:]...)
		text = text[:loginSegment]
		r.SetFlags(pdu.FlagContinue | l.stage<<2)
		c.setData(o, text)
		c.send(nil, o)
		return false, nil
	}
	c.setData(o, text)
	if !l.transit {
		r.SetFlags(l.stage << 2)
		c.send(nil, o)
		return false, nil
	}
	r.SetFlags(pdu.FlagTransit | l.stage<<2 | l.nsg)
	l.stage = l.nsg
	if l.nsg != pdu.StageFull {
		c.send(nil, o)
		return false, nil
	}
	if err := l.establish(); err != nil {
		c.release(o)
		return false, err
	}
	r.SetTSIH(c.tsih)
	if m := c.srv.opts.Metrics; m != nil {
		m.Login(pdu.LoginSuccess)
	}
	c.send(nil, o)
	c.drained()
	c.params = l.neg.params
	// Segments are cut at multiples of four, so that only a command's last one is
	// padded.
	c.sendSegment &^= 3
	c.maxBurst &^= 3
	c.digestsOn = true
	c.r.HeaderDigest, c.r.DataDigest, c.r.MaxData = c.headerDigest, c.dataDigest, ownSegment
	c.full.Store(true)
	c.srv.log.Info("iscsi: logged in", "initiator", c.initiator, "from", c.from, "target", c.key.target, "user", c.user,
		"tsih", c.tsih, "discovery", c.discovery, "header_digest", c.headerDigest, "data_digest", c.dataDigest)
	return true, nil
}

// keys answers the keys of one request.
func (l *loginState) keys(pairs []pdu.Pair) (out []byte, err error) {
	first := map[string]string{}
	for _, p := range pairs {
		if _, dup := first[p.Key]; dup {
			return nil, refuse(pdu.LoginInitiatorError, "key %s given twice", p.Key)
		}
		first[p.Key] = p.Value
	}
	if !l.known {
		if err := l.identify(first); err != nil {
			return nil, err
		}
	}
	if l.stage == pdu.StageOperational && l.authNeed && !l.authDone {
		return nil, refuse(pdu.LoginAuthFailed, "login without the authentication that is required")
	}
	for _, p := range pairs {
		switch {
		case p.Key == "AuthMethod":
			if l.stage != pdu.StageSecurity || l.authDone {
				return nil, refuse(pdu.LoginInitiatorError, "AuthMethod out of sequence")
			}
			m, err := l.method(p.Value)
			if err != nil {
				return nil, err
			}
			out = pdu.AppendPair(out, p.Key, m)
		case strings.HasPrefix(p.Key, "CHAP_"):
			// Handled together below.
		default:
			a, ok := l.neg.key(p.Key, p.Value)
			if !ok {
				return nil, refuse(pdu.LoginInitiatorError, "key %s negotiated twice", p.Key)
			}
			if a != noAnswer {
				out = pdu.AppendPair(out, p.Key, a)
			}
		}
	}
	if out, err = l.chapKeys(first, out); err != nil {
		return nil, err
	}
	if !l.groupTold && !l.c.discovery {
		out = pdu.AppendPair(out, "TargetPortalGroupTag", portalGroup)
		l.groupTold = true
	}
	if l.stage == pdu.StageOperational && !l.neg.declared {
		out = pdu.AppendPair(out, "MaxRecvDataSegmentLength", fmt.Sprint(ownSegment))
		l.neg.declared = true
	}
	return out, nil
}

// identify looks at who wants to log in where. Whether the target exists is for
// those who have proved themselves.
func (l *loginState) identify(keys map[string]string) error {
	c := l.c
	l.known = true
	c.initiator = keys["InitiatorName"]
	l.target = keys["TargetName"]
	switch keys["SessionType"] {
	case "", "Normal":
	case "Discovery":
		c.discovery, l.neg.discovery = true, true
	default:
		return refuse(pdu.LoginBadSessionType, "session type %.40q", keys["SessionType"])
	}
	if c.initiator == "" || l.target == "" && !c.discovery {
		return refuse(pdu.LoginMissingParameter, "initiator or target name missing")
	}
	if !ValidName(c.initiator) {
		bad := c.initiator
		c.initiator = ""
		return refuse(pdu.LoginInitiatorError, "initiator name %.80q is none", bad)
	}
	acl := &c.srv.opts.ACL
	aclTarget := l.target
	if c.discovery {
		aclTarget = ""
	}
	if !acl.admits(aclTarget, c.initiator, c.from) {
		return refuse(pdu.LoginForbidden, "initiator not allowed")
	}
	auth := &c.srv.opts.Auth
	l.authNeed = len(auth.Users) > 0 && !(c.discovery && auth.OpenDiscovery)
	return nil
}

// method picks an authentication method.
func (l *loginState) method(list string) (string, error) {
	want := "None"
	if l.authNeed {
		want = "CHAP"
	}
	for _, m := range strings.Split(list, ",") {
		if m == want {
			return m, nil
		}
	}
	return "", refuse(pdu.LoginAuthFailed, "initiator offers %.80q, %s is needed", list, want)
}

func (l *loginState) chapKeys(keys map[string]string, out []byte) ([]byte, error) {
	var reply []pdu.Pair
	var err error
	_, hasN := keys["CHAP_N"]
	_, hasR := keys["CHAP_R"]
	a, hasA := keys["CHAP_A"]
	switch {
	case !hasA && !hasN && !hasR:
		return out, nil
	case !l.authNeed || l.authDone || l.stage != pdu.StageSecurity:
		err = errCHAPSequence
	case hasA && l.chap.hash == nil && !hasN && !hasR:
		reply, err = l.chap.begin(a)
	case !hasA:
		if reply, err = l.chap.finish(keys); err == nil {
			l.authDone = true
			l.c.user = l.chap.user.Name
		}
	default:
		err = errCHAPSequence
	}
	if err != nil {
		return nil, refuse(pdu.LoginAuthFailed, "%w", err)
	}
	for _, p := range reply {
		out = pdu.AppendPair(out, p.Key, p.Value)
	}
	return out, nil
}

// establish makes the session: it finds the target, ends a session that this
// login reinstates, and takes a handle.
func (l *loginState) establish() error {
	c, s := l.c, l.c.srv
	if l.authNeed && !l.authDone {
		return refuse(pdu.LoginAuthFailed, "login without the authentication that is required")
	}
	if !c.discovery && l.chap.user != nil && !l.chap.user.mayUse(l.target) {
		return refuse(pdu.LoginForbidden, "user %q has no access to this target", c.user)
	}
	key := sessionKey{strings.ToLower(c.initiator), l.isid, l.target}
	s.mu.Lock()
	t := s.targets[l.target]
	if !c.discovery && t == nil {
		s.mu.Unlock()
		return refuse(pdu.LoginNotFound, "no such target")
	}
	var old *conn
	if !c.discovery {
		old = s.sessions[key]
	}
	if l.tsih != 0 && (old == nil || old.tsih != l.tsih) {
		s.mu.Unlock()
		return refuse(pdu.LoginNoSession, "session %#x does not exist", l.tsih)
	}
	s.mu.Unlock()
	if old != nil {
		old.fail(errReinstated)
		select {
		case <-old.ended:
		case <-time.After(s.limits.LoginTimeout):
			return refuse(pdu.LoginTargetError, "the session to be reinstated does not end")
		}
	}
	c.cid = l.cid
	var nexus *scsi.Nexus
	if !c.discovery { // may make scratch files: not under the lock
		var err error
		if nexus, err = t.device.Attach(portName(c.initiator, key.isid)); err != nil {
			return refuse(pdu.LoginOutOfResources, "%w", err)
		}
	}
	err := l.register(key, t, nexus)
	if err != nil && nexus != nil {
		nexus.Detach()
		for _, o := range t.overlays {
			o.done(portName(c.initiator, key.isid), false)
		}
	}
	return err
}

// register enters the session, unless things have changed since establish looked.
func (l *loginState) register(key sessionKey, t *target, nexus *scsi.Nexus) error {
	c, s := l.c, l.c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return refuse(pdu.LoginUnavailable, "shutting down")
	case !c.discovery && t.removed:
		return refuse(pdu.LoginRemoved, "target was removed")
	case !c.discovery && s.sessions[key] != nil:
		return refuse(pdu.LoginOutOfResources, "two logins for one session at once")
	}
	h := l.tsih
	if h == 0 || s.handles[h] != nil {
		if h = s.newHandle(); h == 0 {
			return refuse(pdu.LoginOutOfResources, "no session handle left")
		}
	}
	c.key, c.tsih = key, h
	if !c.discovery {
		c.nexus = nexus
		c.target.Store(t)
		s.sessions[key] = c
	}
	s.handles[h] = c
	return nil
}
