package vhdx

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// qemuReplay returns what QEMU shows of a dirty image, having replayed the log
// in a copy; nil when it can't.
func qemuReplay(t *testing.T, m *mem) block.Reader {
	t.Helper()
	img, back := filepath.Join(t.TempDir(), "copy.vhdx"), filepath.Join(t.TempDir(), "back")
	m.save(t, img)
	out, err := exec.Command(tool(t, "qemu-img"), "check", "-f", "vhdx", "-r", "all", img).CombinedOutput()
	if err != nil {
		t.Logf("QEMU: %s", out)
		return nil
	}
	runTool(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", img, back)
	return openFile(t, back)
}

// unchanged fails when reading has changed the file at path.
func unchanged(t *testing.T, path string) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s has changed (%v)", path, err)
		}
	})
}

// TestReplay replays a log with everything in it, and has QEMU do so too.
func TestReplay(t *testing.T) {
	data := disk(7<<20+512, 3, 30)
	copy(data, fullDisk(1<<20))
	sound := dynamicImage(t, data, WriteOptions{ID: [16]byte{5}})
	stale := staleImage(t, sound, writeLogSize-0x8000) // its entries run over the log's end
	want := openMem(t, sound, imageformats.OpenOptions{})
	path := filepath.Join(t.TempDir(), "dirty.vhdx")
	stale.save(t, path)
	unchanged(t, path)
	var log bytes.Buffer
	img, err := Format.Open(t.Context(), openFile(t, path), imageformats.OpenOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	readertest.Run(t, img, want)
	// What the log left alone can be spliced from the file.
	inFile := int64(0)
	for off := int64(0); off < img.Size(); {
		e, err := block.ExtentAt(t.Context(), img, off, img.Size())
		if err != nil {
			t.Fatal(err)
		}
		if e.File != nil {
			inFile += e.Len
		}
		off += e.Len
	}
	if inFile < 1<<20-64<<10 || inFile > img.Size()-5*logSector {
		t.Errorf("%d bytes lie in the file", inFile)
	}
	if !strings.Contains(log.String(), "replayed in memory") {
		t.Errorf("log %q", log.String())
	}
	if info, err := Format.Probe(t.Context(), openFile(t, path)); err != nil || info.Size != int64(len(data)) || len(info.Warnings) != 1 {
		t.Errorf("Probe: %+v, %v", info, err)
	}
	if _, err := Format.Open(t.Context(), stale, imageformats.OpenOptions{IgnoreLog: true}); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("without the log: %v", err)
	}
	// QEMU doesn't look whether a sequence has its tail, and so would replay the
	// end of one that runs over the log's end.
	stale = staleImage(t, sound, 0)
	readertest.Run(t, openMem(t, stale, imageformats.OpenOptions{}), want)
	readertest.Run(t, qemuReplay(t, stale), want)
}

// TestReplayChild replays the log of a differencing image: its sector bitmap.
func TestReplayChild(t *testing.T) {
	data := fullDisk(5 << 20)
	next := slices.Clone(data)
	change(next, 4, 20)
	parent := openMem(t, dynamicImage(t, data, WriteOptions{ID: [16]byte{1}}), imageformats.OpenOptions{})
	m := diffImage(t, next, data, DiffOptions{WriteOptions: WriteOptions{ID: [16]byte{2}}, ParentID: [16]byte{1}})
	sb := m.size - bitmapSize // written last
	w := newLog(m, 0)
	w.add(now(m, sb))
	m.put(sb, bytes.Repeat([]byte{0x5a}, logSector)...)
	readertest.Run(t, openMem(t, m, imageformats.OpenOptions{Parent: parent}), next)
}

// TestIgnoreLog shows an image as it lies there.
func TestIgnoreLog(t *testing.T) {
	data := fullDisk(3 << 20)
	m := dynamicImage(t, data, WriteOptions{})
	w := newLog(m, 0)
	w.add(update{at: writeBATOff, n: logSector}) // all blocks gone
	readertest.Run(t, openMem(t, m, imageformats.OpenOptions{}), make(readertest.Bytes, len(data)))
	img := openMem(t, m, imageformats.OpenOptions{IgnoreLog: true})
	readertest.Run(t, img, data)
	if w := img.Info().Warnings; len(w) != 1 || !strings.Contains(w[0], "ignored") {
		t.Errorf("warnings %q", w)
	}
}

// TestLastFileOffset replays logs that make the file longer: what is new in it is
// zeros. A file shorter than was flushed is refused.
func TestLastFileOffset(t *testing.T) {
	data := fullDisk(4 << 20)
	m := dynamicImage(t, data, WriteOptions{})
	w := newLog(m, 0)
	w.flushed = uint64(m.size - 2*mib)
	w.add(now(m, writeBATOff))
	want := append(slices.Clone(data[:2<<20+5000]), make([]byte, 2<<20-5000)...)
	short := m.cut(m.size - 2*mib + 5000)
	readertest.Run(t, openMem(t, short, imageformats.OpenOptions{}), want)
	readertest.Run(t, qemuReplay(t, m), data)
	if _, err := Format.Open(t.Context(), m.cut(m.size-2*mib-1), imageformats.OpenOptions{}); !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("shorter than flushed: %v", err)
	}
	path := filepath.Join(t.TempDir(), "short.vhdx") // with extents
	short.save(t, path)
	readertest.Run(t, openImage(t, path, nil), want)

	// An update beyond the end makes the file longer, too.
	w = newLog(m, 0)
	w.add(now(m, m.size-logSector))
	want = append(slices.Clone(data[:3<<20]), make([]byte, 1<<20)...)
	copy(want[len(want)-logSector:], data[len(data)-logSector:])
	w.last, w.flushed = 0, 0
	w.pos = 0
	w.add(now(m, m.size-logSector))
	w.m.put(writeLogOff+offEntryTail, 0, 0, 0, 0)
	short = m.cut(m.size - mib)
	readertest.Run(t, openMem(t, short, imageformats.OpenOptions{}), want)
}

// TestBadLogs refuses logs that can't be replayed, and says so; as they lie
// there, the images can be read.
func TestBadLogs(t *testing.T) {
	data := fullDisk(2 << 20)
	base := dynamicImage(t, data, WriteOptions{})
	resum := func(m *mem, at int64) {
		n := int(le.Uint32(m.get(at+offEntryLength, 4)))
		m.sum(at, n, offEntrySum)
	}
	const log = int64(writeLogOff)
	for name, c := range map[string]struct {
		damage func(m *mem)
		msg    string
		err    error // ErrCorrupt when nil
	}{
		"empty":              {func(m *mem) { m.put(log, make([]byte, 2*logSector)...) }, "no whole sequence", nil},
		"torn":               {func(m *mem) { m.flip(log + 2*logSector + 99) }, "no whole sequence", nil},
		"other guid":         {func(m *mem) { m.flip(log + offEntryGUID); resum(m, log) }, "no whole sequence", nil},
		"length":             {func(m *mem) { m.put32(log+offEntryLength, 4*logSector+1) }, "no whole sequence", nil},
		"length 0":           {func(m *mem) { m.put32(log+offEntryLength, 0) }, "no whole sequence", nil},
		"length, huge":       {func(m *mem) { m.put32(log+offEntryLength, 0xfffff000) }, "no whole sequence", nil},
		"tail elsewhere":     {func(m *mem) { m.put32(log+offEntryTail, 0x8000); resum(m, log) }, "no whole sequence", nil},
		"tail":               {func(m *mem) { m.put32(log+offEntryTail, writeLogSize); resum(m, log) }, "tail 0x100000", nil},
		"tail, odd":          {func(m *mem) { m.put32(log+offEntryTail, 1); resum(m, log) }, "tail 0x1", nil},
		"sequence 0":         {func(m *mem) { m.put64(log+offEntrySeq, 0); resum(m, log) }, "sequence number 0", nil},
		"sequence":           {func(m *mem) { m.put64(log+offEntrySeq, 9); resum(m, log) }, "in an entry of 9", nil},
		"count":              {func(m *mem) { m.put32(log+offEntryCount, 1<<30); resum(m, log) }, "descriptors", nil},
		"count, 1 more":      {func(m *mem) { m.put32(log+offEntryCount, 4); resum(m, log) }, "log descriptor", nil},
		"count, 1 less":      {func(m *mem) { m.put32(log+offEntryCount, 2); resum(m, log) }, "its sectors take", nil},
		"flushed":            {func(m *mem) { m.put64(log+offFlushed, 1<<63); resum(m, log) }, "cut off", nil},
		"last":               {func(m *mem) { m.put64(log+offLast, 1<<63); resum(m, log) }, "file size", nil},
		"descriptor":         {func(m *mem) { m.flip(log + entryHeadSize); resum(m, log) }, "signature", nil},
		"descriptor's seq":   {func(m *mem) { m.flip(log + entryHeadSize + offDescSeq); resum(m, log) }, "sequence number", nil},
		"descriptor's place": {func(m *mem) { m.put64(log+entryHeadSize+offDescOffset, 1); resum(m, log) }, "log descriptor", nil},
		"far away":           {func(m *mem) { m.put64(log+entryHeadSize+offDescOffset, 1<<63); resum(m, log) }, "log descriptor", nil},
		"over a header":      {func(m *mem) { m.put64(log+entryHeadSize+offDescOffset, header1Off); resum(m, log) }, "over the headers", nil},
		"over the log":       {func(m *mem) { m.put64(log+entryHeadSize+offDescOffset, writeLogOff+logSector); resum(m, log) }, "over the log", nil},
		"zero's length":      {func(m *mem) { m.put64(log+entryHeadSize+descSize+offZeroLength, 1<<63); resum(m, log) }, "zero descriptor", nil},
		"zero's length, odd": {func(m *mem) { m.put64(log+entryHeadSize+descSize+offZeroLength, 512); resum(m, log) }, "zero descriptor", nil},
		"data":               {func(m *mem) { m.flip(log + logSector); resum(m, log) }, "log data sector", nil},
		"data's seq high":    {func(m *mem) { m.flip(log + logSector + offSeqHigh); resum(m, log) }, "log data sector", nil},
		"data's seq low":     {func(m *mem) { m.flip(log + logSector + offSeqLow); resum(m, log) }, "log data sector", nil},
		"version":            {func(m *mem) { setHeader(m, func(h *header) { h.logVersion = 1 }) }, "version 1", ondisk.ErrUnsupported},
		"too long":           {func(m *mem) { setHeader(m, func(h *header) { h.logOffset, h.logLength = 1<<40, 512*mib }) }, "at most", ondisk.ErrUnsupported},
		"outside":            {func(m *mem) { setHeader(m, func(h *header) { h.logOffset = 1 << 40 }) }, "past the end", nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := base.clone()
			w := newLog(m, 0)
			w.add(now(m, writeBATOff), update{at: 100 * mib, n: logSector}, now(m, writeMetadataOff))
			c.damage(m)
			if c.err == nil {
				c.err = ondisk.ErrCorrupt
			}
			_, err := Format.Open(t.Context(), m, imageformats.OpenOptions{})
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.msg) || !strings.Contains(err.Error(), "log can't be replayed") {
				t.Errorf("Open: %v; want %v with %q", err, c.err, c.msg)
			}
			info, err := Format.Probe(t.Context(), m)
			if err != nil || len(info.Warnings) != 1 || !strings.Contains(info.Warnings[0], "can't be replayed") {
				t.Errorf("Probe: %q, %v", info.Warnings, err)
			}
			same(t, openMem(t, m, imageformats.OpenOptions{IgnoreLog: true}), data)
		})
	}
}

// TestLogFlips inverts bytes of a log of one entry, all of its headers: the result
// is an error, as that entry is all there is.
func TestLogFlips(t *testing.T) {
	data := fullDisk(2 << 20)
	m := dynamicImage(t, data, WriteOptions{})
	w := newLog(m, 0)
	w.add(now(m, writeBATOff), now(m, writeMetadataOff))
	for off := int64(0); off < int64(w.pos); off++ {
		if off%logSector > entryHeadSize+2*descSize && off%logSector < logSector-8 && off%97 != 0 {
			continue
		}
		m.flip(writeLogOff + off)
		if img, err := Format.Open(t.Context(), m, imageformats.OpenOptions{}); err == nil {
			t.Fatalf("with byte %#x of the log inverted it opens: %+v", off, img)
		}
		m.flip(writeLogOff + off)
	}
	readertest.Run(t, openMem(t, m, imageformats.OpenOptions{}), data)
}

// TestOverlappingEntries bounds the time that a log takes whose entries claim
// all of it.
func TestOverlappingEntries(t *testing.T) {
	m := dynamicImage(t, fullDisk(512), WriteOptions{})
	newLog(m, 0)
	for at := int64(0); at < writeLogSize; at += logSector {
		m.put(writeLogOff+at, []byte(entrySig)...)
		id := logID.swapped()
		m.put(writeLogOff+at+offEntryGUID, id[:]...)
		m.put32(writeLogOff+at+offEntryLength, writeLogSize)
	}
	if _, err := Format.Open(t.Context(), m, imageformats.OpenOptions{}); !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("Open: %v", err)
	}
}

// crashed returns an image that QEMU was writing to when its nth write and all
// later ones failed.
func crashed(t *testing.T, dir string, base []byte, n int) *mem {
	t.Helper()
	path := filepath.Join(dir, "crash.vhdx")
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	type rule map[string]any
	var count []rule
	for i := 1; i < n; i++ {
		count = append(count, rule{"event": "pwritev", "state": i, "new_state": i + 1})
	}
	spec, err := json.Marshal(rule{"driver": "vhdx", "file": rule{
		"driver": "blkdebug", "image": rule{"driver": "file", "filename": path}, "set-state": count,
		"inject-error": []rule{{"event": "pwritev", "iotype": "write", "state": n, "errno": 5}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool(t, "qemu-io"), "-c", "write -P 5 5M 70000", "-c", "write -P 6 9M 2M", "json:"+string(spec))
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("write %d doesn't fail: %s", n, out)
	}
	return load(t, path)
}

// TestQEMUCrashes reads what QEMU leaves when it is stopped before each of its
// writes in turn, and compares with what QEMU makes of it.
func TestQEMUCrashes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "base.vhdx")
	runTool(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "12M")
	runTool(t, "qemu-io", "-f", "vhdx", "-c", "write -P 9 0 3M", path)
	base, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	replayed := 0
	for n := 3; n < 19; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			m := crashed(t, dir, base, n)
			img, err := Format.Open(t.Context(), m, imageformats.OpenOptions{})
			if err != nil {
				// QEMU marks a log as used before its first entry is there. The
				// text has no such state: it is an error to be told of.
				if !strings.Contains(err.Error(), "no whole sequence") {
					t.Fatal(err)
				}
				if img, err = Format.Open(t.Context(), m, imageformats.OpenOptions{IgnoreLog: true}); err != nil {
					t.Fatal(err)
				}
			} else if len(img.(*Image).Info().Warnings) > 0 {
				replayed++
			}
			want := qemuReplay(t, m)
			if want == nil {
				t.Fatal("QEMU can't read it")
			}
			exp, err := readertest.Hash(want, 1<<20)
			if got, rerr := readertest.Hash(img, 1<<20); err != nil || rerr != nil || got != exp {
				t.Errorf("hash %s, %v; QEMU's %s, %v", got, rerr, exp, err)
			}
		})
	}
	if replayed < 3 {
		t.Errorf("%d logs were replayed", replayed)
	}
}
