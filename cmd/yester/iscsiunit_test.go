package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/iscsi"
	"yester/restorepoint"
)

func TestTargetName(t *testing.T) {
	long := strings.Repeat("a", 300)
	for machine, want := range map[string]string{
		"web01":         "web01",
		"WEB01":         "web01",
		"db.example":    "db.example",
		"web_01":        "web-01-",
		"web 01":        "web-01-",
		"a:b/c":         "a-b-c-",
		"日本":            "",
		"":              "",
		"_x_":           "x-",
		long:            "aaaa",
		long[:149] + "": long[:149],
	} {
		got := targetName(machine, "2006-11-18T02-30-00Z-2")
		name, ok := strings.CutPrefix(got, "iqn.2026-11.yester:")
		name, ok2 := strings.CutSuffix(name, ":2006-11-18t02-30-00z-2")
		if !ok || !ok2 || !iscsi.ValidName(got) || got != strings.ToLower(got) || name == "" || strings.HasPrefix(name, "-") {
			t.Errorf("%q: %q", machine, got)
		}
		if exact := plainMachine(machine); exact && name != strings.ToLower(machine) || !exact && (!strings.HasPrefix(name, want) || name == strings.ToLower(machine)) {
			t.Errorf("%q: %q, want %q", machine, name, want)
		}
	}
	seen := map[string]string{}
	for _, m := range []string{"web-01", "web_01", "web 01", "web:01", "web__01", "", "日本", "日木", long, long + "b"} {
		n := targetName(m, "x")
		if seen[n] != "" {
			t.Errorf("%q and %q are both %q", m, seen[n], n)
		}
		seen[n] = m + "!"
	}
}

// plainMachine reports whether a machine's name stays as it is, but for its case.
func plainMachine(m string) bool {
	return m != "" && len(m) <= 150 && strings.Trim(strings.ToLower(m), "abcdefghijklmnopqrstuvwxyz0123456789.-") == ""
}

func TestDiskIdentity(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range [][3]string{{"a", "b", "c"}, {"a b", "", "c"}, {"a", "b c", ""}, {"a", "b", "d"}, {"x", "b", "c"}, {"a", "x", "c"}} {
		p := &restorepoint.Point{Machine: c[0], ID: c[1]}
		serial, naa := diskIdentity(p, c[2])
		again, naa2 := diskIdentity(p, c[2])
		if serial != again || naa != naa2 || len(serial) != 32 || naa[0]>>4 != 3 {
			t.Errorf("%q: %s %x, then %s %x", c, serial, naa, again, naa2)
		}
		if seen[serial] || seen[string(naa[:])] {
			t.Errorf("%q has another's name", c)
		}
		seen[serial], seen[string(naa[:])] = true, true
	}
	// Initiators remember these: they must never change.
	if serial, naa := diskIdentity(&restorepoint.Point{Machine: "web01", ID: "2006-11-18T02-30-00Z"}, "web01"); serial != "cf9f65b6c350237becc81d8847b7db98" || hex.EncodeToString(naa[:]) != "3af859e567185c38" {
		t.Errorf("%s %x", serial, naa)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1M": mib, "10G": 10 << 30, "10g": 10 << 30, "10GiB": 10 << 30, "10GB": 10 << 30, "2T": 2 << 40, "1048576": mib, "2048k": 2 * mib, " 1M ": mib,
		"": 0, "G": 0, "-1G": 0, "1.5G": 0, "10X": 0, "1K": 0, "0": 0, "9999999999999T": 0, "99999999999999999999": 0, "8388608T": 0,
	} {
		if got, err := parseSize(s); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		content, want string
		mode          os.FileMode
		bad           string
	}{
		{"wonderland-1234\n", "wonderland-1234", 0o600, ""},
		{"wonderland-1234\r\n", "wonderland-1234", 0o400, ""},
		{" with spaces \n", " with spaces ", 0o600, ""},
		{"wonderland-1234", "", 0o640, "can be read or changed by others (mode 0640)"},
		{"wonderland-1234", "", 0o604, "others"},
		{"wonderland-1234", "", 0o620, "others"},
		{"two\nlines-of-text\n", "", 0o600, "several lines"},
	} {
		path := filepath.Join(dir, "secret")
		os.Remove(path)
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := readSecret("--chap-secret-file", path)
		if got != c.want || (err == nil) != (c.bad == "") || err != nil && (!strings.Contains(err.Error(), c.bad) || code(err) != 2) {
			t.Errorf("%q %o: %q, %v", c.content, c.mode, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "wonderland") {
			t.Errorf("the error has the secret: %v", err)
		}
	}
}

func TestPortal(t *testing.T) {
	for _, c := range []struct{ ip, want string }{{"127.0.0.1", "127.0.0.1:3260"}, {"2001:db8::7", "[2001:db8::7]:3260"}} {
		if got := portal(&net.TCPAddr{IP: net.ParseIP(c.ip), Port: 3260}); got != c.want {
			t.Errorf("%s: %s", c.ip, got)
		}
	}
	got := portal(&net.TCPAddr{IP: net.IPv4zero, Port: 3260})
	if host, _, err := net.SplitHostPort(got); err != nil || net.ParseIP(host).To4() == nil || net.ParseIP(host).IsUnspecified() {
		t.Errorf("0.0.0.0: %s", got)
	}
}

// TestRest closes points that nobody uses any more, and opens them again.
func TestRest(t *testing.T) {
	dir, _, _ := iscsiChain(t)
	src, err := restorepoint.Open(dir, restorepoint.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	log := slog.New(slog.DiscardHandler)
	set := newTargetSet(src, &iscsiFlags{allPoints: true}, nil, log, log)
	set.machine = "web01"
	set.srv = iscsi.New(iscsi.Options{})
	set.refresh(context.Background())
	first := set.served()[0]
	read := func(s *servedPoint) []byte {
		t.Helper()
		b := make([]byte, 4096)
		if _, err := (&servedDisk{opener: s.opener, size: 24 * mib}).ReadAt(b, mib); err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := read(first)
	if set.rest(time.Hour); set.stats(time.Time{}).Open != 1 {
		t.Error("closed too soon")
	}
	if set.rest(0); set.stats(time.Time{}).Open != 0 {
		t.Error("not closed")
	}
	if _, err := (&servedDisk{opener: first.opener, size: 24 * mib}).ReadAt(make([]byte, 512), 0); err != errPointClosed {
		t.Errorf("a closed point: %v", err)
	}
	again := set.served()[0]
	if again.iqn != first.iqn || again.luns[0] != first.luns[0] || !bytes.Equal(read(again), want) {
		t.Errorf("%+v, then %+v", first, again)
	}
	if n, err := (&servedDisk{opener: again.opener, size: 24 * mib}).ReadAt(make([]byte, 1024), 24*mib-512); n != 512 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	set.close()
	if set.counts.errors.Load() != 1 {
		t.Errorf("%d errors counted", set.counts.errors.Load())
	}
}
