package pdu

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReader(t *testing.T) {
	var h Header
	h.SetOp(OpDataOut)
	h.SetImmediate()
	h.SetFlags(FlagFinal)
	h.SetLUN(0x0102030405060708)
	h.SetITT(0xdeadbeef)
	h.SetTTT(7)
	h.SetDataSN(8)
	h.SetBufferOffset(9)
	for _, n := range []int{0, 1, 2, 3, 4, 1000, 40000} {
		for _, digests := range []bool{false, true} {
			data := bytes.Repeat([]byte{0xa5}, n)
			var stream []byte
			for range 3 {
				stream = Append(stream, &h, data, digests, digests)
			}
			for name, src := range map[string]io.Reader{"whole": bytes.NewReader(stream), "bytes": iotest.OneByteReader(bytes.NewReader(stream))} {
				r := NewReader(src, 1<<20)
				r.HeaderDigest, r.DataDigest = digests, digests
				for i := range 3 {
					var g Header
					if _, err := r.Next(&g); err != nil || g != h {
						t.Fatalf("%s, %d bytes: %v", name, n, err)
					}
					if i == 1 {
						if err := r.Discard(); err != nil {
							t.Fatal(err)
						}
						continue
					}
					got := make([]byte, n)
					if err := r.Data(got); err != nil || !bytes.Equal(got, data) {
						t.Fatalf("%s, %d bytes of data: %v", name, n, err)
					}
				}
				var g Header
				if _, err := r.Next(&g); err != io.EOF {
					t.Errorf("end: %v", err)
				}
			}
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	var h Header
	h.SetOp(OpTextReq)
	good := Append(nil, &h, []byte("hello"), true, true)
	read := func(p []byte) error {
		r := NewReader(bytes.NewReader(p), 100)
		r.HeaderDigest, r.DataDigest = true, true
		var g Header
		if _, err := r.Next(&g); err != nil {
			return err
		}
		return r.Data(make([]byte, g.DataLen()))
	}
	for i := range good {
		p := bytes.Clone(good)
		p[i] ^= 0x10
		if err := read(p); err == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
		if err := read(good[:i]); err == nil {
			t.Errorf("cut at %d: accepted", i)
		}
	}
	if err := read(Append(nil, &h, make([]byte, 101), true, true)); !errors.Is(err, ErrTooLong) {
		t.Errorf("too long: %v", err)
	}
}

// TestCRC: the vector of RFC 7143 appendix A.4: 32 bytes of zeros give
// aa 36 91 8a on the wire.
func TestCRC(t *testing.T) {
	if c := CRC(0, make([]byte, 32)); c != 0x8a9136aa {
		t.Errorf("%#x", c)
	}
}

func TestText(t *testing.T) {
	p, err := ParseText([]byte("a=1\x00b=\x00\x00c=x=y"))
	if err != nil || len(p) != 3 || p[1] != (Pair{"b", ""}) || p[2] != (Pair{"c", "x=y"}) {
		t.Errorf("%v, %v", p, err)
	}
	for _, bad := range []string{"novalue", "=x", "sp ace=1", strings.Repeat("k", 64) + "=1", strings.Repeat("k=1\x00", 129)} {
		if _, err := ParseText([]byte(bad)); !errors.Is(err, ErrText) {
			t.Errorf("%.20q accepted", bad)
		}
	}
	for s, want := range map[string]uint64{"0": 0, "0x1F": 31, "16777215": 1<<24 - 1, "0XffffffffFFFFFFFF": 1<<64 - 1} {
		if n, err := ParseNumber(s); err != nil || n != want {
			t.Errorf("%s: %d, %v", s, n, err)
		}
	}
	for _, s := range []string{"", "+1", "-1", "0x", "1_0", "0x1_0", "18446744073709551616", "ten"} {
		if _, err := ParseNumber(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
	for s, want := range map[string]string{"0x68690A": "hi\n", "0bAQID": "\x01\x02\x03", "0x123": "\x01\x23"} {
		if b, err := ParseBinary(s, 10); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", s, b, err)
		}
	}
	for _, s := range []string{"", "68", "0x", "0xzz", "0b!", "0x" + strings.Repeat("00", 11)} {
		if _, err := ParseBinary(s, 10); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

func TestBefore(t *testing.T) {
	if !Before(0xffffffff, 0) || Before(0, 0xffffffff) || Before(5, 5) || !Before(5, 6) {
		t.Error("serial numbers")
	}
}

func FuzzReader(f *testing.F) {
	var h Header
	h.SetOp(OpCommand)
	f.Add(Append(nil, &h, []byte("data"), false, false), false)
	f.Add(Append(nil, &h, []byte("data"), true, true), true)
	h.SetAHSLen(8)
	f.Add(append(h[:], make([]byte, 20)...), false)
	f.Fuzz(func(t *testing.T, p []byte, digests bool) {
		r := NewReader(bytes.NewReader(p), 4096)
		r.HeaderDigest, r.DataDigest = digests, digests
		for i := 0; ; i++ {
			var h Header
			ahs, err := r.Next(&h)
			if err != nil {
				return
			}
			if len(ahs) != h.AHSLen() || h.DataLen() > 4096 {
				t.Fatal("lengths")
			}
			if i%2 == 0 {
				err = r.Data(make([]byte, h.DataLen()))
			} else {
				err = r.Discard()
			}
			if err != nil && !errors.Is(err, ErrDataDigest) {
				return
			}
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.1993-08.org.debian:01:abc\x00AuthMethod=CHAP,None\x00"))
	f.Add([]byte("CHAP_C=0xdeadbeef\x00CHAP_I=5\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		pairs, err := ParseText(p)
		if err != nil {
			return
		}
		var again []byte
		for _, q := range pairs {
			again = AppendPair(again, q.Key, q.Value)
			ParseNumber(q.Value)
			if b, err := ParseBinary(q.Value, 1024); err == nil && len(b) > 1024 {
				t.Fatal("binary value too long")
			}
		}
		back, err := ParseText(again)
		if err != nil || len(back) != len(pairs) {
			t.Fatalf("%d pairs became %d: %v", len(pairs), len(back), err)
		}
	})
}
