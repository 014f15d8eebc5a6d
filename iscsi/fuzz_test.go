package iscsi

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"yester/iscsi/pdu"
)

// noPanic is a log handler that fails the test on a recovered panic.
type noPanic struct {
	slog.Handler
	t testing.TB
}

func (h noPanic) Enabled(context.Context, slog.Level) bool { return true }
func (h noPanic) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "iscsi: panic in a session" {
		h.t.Error(r.Message)
		r.Attrs(func(a slog.Attr) bool { h.t.Log(a); return true })
	}
	return nil
}

// pipeServer serves one end of a pipe and returns the other.
func pipeServer(t *testing.T, o Options, luns ...LUN) (*Server, net.Conn) {
	o.Logger = slog.New(noPanic{slog.DiscardHandler, t})
	s := New(o)
	if err := s.AddTarget(testTarget, luns...); err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	s.start(a)
	go io.Copy(io.Discard, b)
	return s, b
}

func endServer(t *testing.T, s *Server, nc net.Conn) {
	nc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error("session does not end: ", err)
	}
}

func loginBytes(csg, nsg byte, transit bool, data []byte) []byte {
	var h pdu.Header
	h.SetOp(pdu.OpLoginReq)
	h.SetImmediate()
	f := csg<<2 | nsg
	if transit {
		f |= pdu.FlagTransit
	}
	h.SetFlags(f)
	h.SetITT(1)
	return pdu.Append(nil, &h, data, false, false)
}

// FuzzLogin feeds a connection before login.
func FuzzLogin(f *testing.F) {
	names := text("InitiatorName", testInitiator, "TargetName", testTarget, "SessionType", "Normal")
	f.Add(loginBytes(1, 3, true, append(names, text("HeaderDigest", "CRC32C,None", "MaxBurstLength", "0x100000")...)))
	f.Add(append(loginBytes(0, 1, false, append(names, text("AuthMethod", "CHAP,None")...)), loginBytes(0, 1, false, text("CHAP_A", "7,5"))...))
	f.Add(loginBytes(0, 1, true, text("CHAP_N", "alice", "CHAP_R", "0x0102", "CHAP_I", "5", "CHAP_C", "0b////")))
	f.Add(append(loginBytes(0, 3, true, append(names, text("AuthMethod", "None")...)), make([]byte, 48)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, a := range []Auth{{}, {Users: []User{chapUser}}} {
			s, nc := pipeServer(t, Options{Auth: a}, LUN{ID: 1, Reader: make(memory, 8192)})
			nc.SetDeadline(time.Now().Add(5 * time.Second))
			nc.Write(p)
			endServer(t, s, nc)
		}
	})
}

// FuzzSession feeds a connection in the full feature phase.
func FuzzSession(f *testing.F) {
	one := func(op pdu.Op, flags byte, set func(h *pdu.Header), data []byte) []byte {
		var h pdu.Header
		h.SetOp(op)
		h.SetFlags(flags)
		h.SetLUN(1 << 48)
		h.SetITT(2)
		h.SetTTT(pdu.NoTag)
		if set != nil {
			set(&h)
		}
		return pdu.Append(nil, &h, data, false, false)
	}
	f.Add(one(pdu.OpCommand, 0xc1, func(h *pdu.Header) { h.SetEDTL(4096); copy(h.CDB(), rw16(0x88, 0, 8)) }, nil))
	f.Add(append(one(pdu.OpCommand, 0xa1, func(h *pdu.Header) { h.SetEDTL(1024); copy(h.CDB(), rw16(0x8a, 0, 2)) }, make([]byte, 512)),
		one(pdu.OpDataOut, 0x80, func(h *pdu.Header) { h.SetTTT(1); h.SetBufferOffset(512) }, make([]byte, 512))...))
	f.Add(one(pdu.OpNopOut, 0x80, nil, []byte("ping")))
	f.Add(one(pdu.OpTextReq, 0x80, nil, text("SendTargets", "All")))
	f.Add(one(pdu.OpTaskReq, 0x80|pdu.TaskLUNReset, nil, nil))
	f.Add(one(pdu.OpTaskReq, 0x80|pdu.TaskColdReset, nil, nil))
	f.Add(one(pdu.OpLogoutReq, 0x80, nil, nil))
	f.Add(one(pdu.OpSNACK, 0x80, nil, nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		disk := make(memory, 64<<10)
		s, nc := pipeServer(t, Options{}, LUN{ID: 1, Reader: disk, Overlay: &Overlay{Dir: t.TempDir(), Size: 64 << 10}}, LUN{ID: 2, Reader: disk})
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		nc.Write(loginBytes(1, 3, true, text("InitiatorName", testInitiator, "TargetName", testTarget, "SessionType", "Normal")))
		nc.Write(p)
		endServer(t, s, nc)
		for _, b := range disk {
			if b != 0 {
				t.Fatal("the medium was written to")
			}
		}
	})
}
