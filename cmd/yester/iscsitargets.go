package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"yester/iscsi"
	"yester/restorepoint"
)

const (
	// pollEvery is how often the source is listed while nobody asks.
	pollEvery = 30 * time.Second
	// relistAfter is how old a listing may be when somebody asks for targets. Of
	// large sources it may be older: listing shall take a tenth of the time at most.
	relistAfter = time.Second
	// askTime is how long a login waits for the listing.
	askTime = 3 * time.Second
	// restAfter is how long a point that nobody has logged in to stays open. It is
	// longer than scratch layers wait for their initiators (iscsi.Limits).
	restAfter = 10 * time.Minute
)

// targetSet keeps the targets of a Server in step with a source.
type targetSet struct {
	src     *restorepoint.Source
	srv     *iscsi.Server
	machine string
	all     bool
	only    string   // the id of the point that is served alone; "" for all
	disks   []string // names of those that are served; none: all
	overlay *iscsi.Overlay
	log     *slog.Logger // of what happens
	once    *slog.Logger // of what stays as it is: says a thing once
	counts  *iscsiCounts
	hold    *restorepoint.Opened // the only point, open from the start

	asks    chan chan struct{} // for a fresh listing; follow answers
	left    chan string        // names whose target has been removed, to follow
	ended   chan struct{}      // closed when follow has ended
	removal sync.WaitGroup

	// What follows is changed by one goroutine at a time: the one that starts, then
	// follow, then the one that ends.
	mu      sync.Mutex              // guards targets against those who look
	targets map[string]*servedPoint // by iSCSI name
	leaving map[string]bool         // names whose target is being removed
	follows bool
	listed  time.Time
	took    time.Duration // by the last listing
	failed  bool          // so did the last listing
}

func newTargetSet(src *restorepoint.Source, f *iscsiFlags, overlay *iscsi.Overlay, log, once *slog.Logger) *targetSet {
	return &targetSet{
		src: src, all: f.allPoints, disks: f.disks, overlay: overlay, log: log, once: once, counts: new(iscsiCounts),
		asks: make(chan chan struct{}), left: make(chan string), ended: make(chan struct{}),
		targets: make(map[string]*servedPoint), leaving: make(map[string]bool),
	}
}

// servedPoint is a restore point as a target.
type servedPoint struct {
	iqn    string
	point  restorepoint.Point
	opener *pointOpener
	luns   []servedLUN
	used   time.Time // when it was last seen to have a session
}

// servedLUN is a disk as a logical unit.
type servedLUN struct {
	LUN       uint16 `json:"lun"`
	Disk      string `json:"disk"`
	Size      int64  `json:"size"`       // bytes
	BlockSize int    `json:"block_size"` // bytes
	Serial    string `json:"serial"`
	NAA       string `json:"naa"`
}

// targetName returns the iSCSI name of a restore point.
//
// The machine's name is made lower case; each run of characters other than a-z,
// 0-9, "." and "-" becomes one "-". Where that replaced something, or the name is
// empty or very long, six digits of its SHA-256 follow, so that two machines
// never get one name. Ids of points hold nothing that must be replaced.
func targetName(machine, id string) string {
	const longest = 150 // of the 223 bytes of an iSCSI name (RFC 7143 section 4.2.7.1)
	var b strings.Builder
	replaced := machine == ""
	for _, r := range strings.ToLower(machine) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-':
			b.WriteRune(r)
			continue
		case !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		replaced = true
	}
	name := b.String()
	if len(name) > longest {
		name, replaced = name[:longest], true
	}
	if replaced {
		sum := sha256.Sum256([]byte(machine))
		name = strings.Trim(name, "-") + "-" + hex.EncodeToString(sum[:3])
		name = strings.TrimPrefix(name, "-")
	}
	return "iqn.2026-11.yester:" + name + ":" + strings.ToLower(id)
}

// diskIdentity returns the serial number and the NAA name of a disk. They follow
// from machine, point and disk alone, so that an initiator knows the disk again,
// whichever process serves it.
func diskIdentity(p *restorepoint.Point, disk string) (serial string, naa [8]byte) {
	id := fmt.Sprintf("%q %q %q", p.Machine, p.ID, disk)
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:16]), iscsi.NAA(id, 0)
}

// sectorSize is what formats have that don't say.
const sectorSize = 512

// add makes a target of a point.
func (t *targetSet) add(p restorepoint.Point, old *restorepoint.Opened) error {
	if p.Kind == restorepoint.KindTree {
		return errNoDisks(&p)
	}
	s := &servedPoint{iqn: targetName(p.Machine, p.ID), point: p, opener: newOpener(t.src, p, old, t.counts), used: time.Now()}
	var luns []iscsi.LUN
	for i, d := range p.Disks {
		if len(t.disks) > 0 && !slices.Contains(t.disks, d.Name) {
			continue
		}
		l := iscsi.LUN{
			ID: uint16(len(luns)), Reader: &servedDisk{opener: s.opener, disk: i, size: d.Info.Size},
			BlockSize: d.Info.SectorSize, Overlay: t.overlay,
		}
		if l.BlockSize == 0 {
			l.BlockSize = sectorSize
		}
		// A raw image may end within a sector. No disk does, and what would fill the
		// sector up isn't known.
		rest := d.Info.Size % int64(l.BlockSize)
		if l.Size = d.Info.Size - rest; rest > 0 {
			t.once.Warn("the image ends within a sector, which is left out", "point", p.ID, "disk", d.Name, "bytes", rest)
		}
		if l.Size == 0 {
			return fmt.Errorf("disk %s: %d bytes are less than a sector", d.Name, d.Info.Size)
		}
		l.Serial, l.NAA = diskIdentity(&p, d.Name)
		luns = append(luns, l)
		s.luns = append(s.luns, servedLUN{LUN: l.ID, Disk: d.Name, Size: l.Size, BlockSize: l.BlockSize,
			Serial: l.Serial, NAA: hex.EncodeToString(l.NAA[:])})
	}
	if len(luns) == 0 {
		return fmt.Errorf("none of its disks is chosen by --disk")
	}
	if err := t.srv.AddTarget(s.iqn, luns...); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.targets[s.iqn] = s
	return nil
}

// update makes targets of points, and takes away those of others.
func (t *targetSet) update(points []restorepoint.Point) {
	want := make(map[string]bool)
	for _, p := range points {
		if t.only != "" && p.ID != t.only {
			continue
		}
		iqn := targetName(p.Machine, p.ID)
		if p.Problem != "" {
			t.once.Warn("point can't be served", "point", p.ID, "problem", p.Problem)
			continue
		}
		if s := t.targets[iqn]; s != nil && s.point.Key() != p.Key() {
			t.log.Info("point has changed", "point", p.ID)
			t.remove(s)
		}
		if want[iqn] = true; t.targets[iqn] != nil || t.leaving[iqn] {
			continue
		}
		if err := t.add(p, t.hold); err != nil {
			t.once.Warn("point can't be served", "point", p.ID, "error", err)
			continue
		}
		t.hold = nil
		if t.follows {
			t.log.Info("point is served", "point", p.ID, "target", iqn)
		}
	}
	for iqn, s := range t.targets {
		if !want[iqn] {
			t.log.Info("point is gone from the source", "point", s.point.ID)
			t.remove(s)
		}
	}
}

// removeWait is how long remove waits for a target to go; without sessions it goes
// at once.
const removeWait = 100 * time.Millisecond

// remove takes a target away. Its initiators are given time to log out, so it may
// go on in the background; follow then hears when it is done.
func (t *targetSet) remove(s *servedPoint) {
	t.mu.Lock()
	delete(t.targets, s.iqn)
	t.mu.Unlock()
	done := make(chan struct{})
	t.removal.Go(func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		if err := t.srv.RemoveTarget(ctx, s.iqn); err != nil {
			t.log.Warn("a read of a removed point does not end", "point", s.point.ID, "error", err)
		} else {
			s.opener.close()
		}
	})
	select {
	case <-done:
		return
	case <-time.After(removeWait):
	}
	t.leaving[s.iqn] = true
	go func() {
		<-done
		select {
		case t.left <- s.iqn:
		case <-t.ended:
		}
	}()
}

// follow keeps the targets in step with the source until ctx is done.
func (t *targetSet) follow(ctx context.Context) {
	defer close(t.ended)
	t.follows = true
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case reply := <-t.asks:
			if time.Since(t.listed) >= max(relistAfter, 10*t.took) {
				t.refresh(ctx)
			}
			close(reply)
		case iqn := <-t.left:
			delete(t.leaving, iqn)
			t.refresh(ctx)
		case <-tick.C:
			t.refresh(ctx)
			t.rest(restAfter)
		}
	}
}

// refresh lists the source anew. Where that fails, what was there stays.
func (t *targetSet) refresh(ctx context.Context) {
	start := time.Now()
	cat, err := t.src.List(ctx)
	t.listed = time.Now()
	t.took = t.listed.Sub(start)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if !t.failed {
			t.log.Warn("the source can't be listed; what was there stays", "error", err)
		}
		t.failed = true
		return
	}
	t.failed = false
	t.update(cat.Of(t.machine))
}

// allow is asked at each login, before the initiator has proved itself. It refuses
// nobody; it sees to it that those who ask what there is, or for a target that
// isn't there, are answered from a fresh listing.
func (t *targetSet) allow(target, _ string, _ netip.Addr) bool {
	if target != "" {
		t.mu.Lock()
		known := t.targets[target] != nil
		t.mu.Unlock()
		if known {
			return true
		}
	}
	late := time.NewTimer(askTime)
	defer late.Stop()
	reply := make(chan struct{})
	select {
	case t.asks <- reply:
	case <-late.C:
		return true
	}
	select {
	case <-reply:
	case <-late.C:
	}
	return true
}

// rest closes the points that nobody has been logged in to for so long. What the
// Server remembers of where their bytes lie goes too, so their targets are made
// anew.
func (t *targetSet) rest(after time.Duration) {
	if !t.all {
		return
	}
	busy := make(map[string]bool)
	for _, s := range t.srv.Sessions() {
		busy[s.Target] = true
	}
	now := time.Now()
	for iqn, s := range t.targets {
		switch {
		case busy[iqn]:
			s.used = now
			continue
		case s.opener.opened.Load() == nil || now.Sub(s.used) < after:
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := t.srv.RemoveTarget(ctx, iqn) // at once: there are no sessions
		cancel()
		t.mu.Lock()
		delete(t.targets, iqn)
		t.mu.Unlock()
		if failed := t.add(s.point, nil); failed != nil {
			t.log.Warn("point can't be served", "point", s.point.ID, "error", failed)
		}
		if err == nil {
			s.opener.close()
		}
	}
}

// busy reports whether some command is under way.
func (t *targetSet) busy() bool {
	for _, s := range t.srv.Sessions() {
		if s.Outstanding > 0 {
			return true
		}
	}
	return false
}

// close closes all points; the Server doesn't use them any more.
func (t *targetSet) close() {
	t.removal.Wait()
	for _, s := range t.targets {
		s.opener.close()
	}
	if t.hold != nil {
		t.hold.Close()
	}
}

// served returns the points that are served, oldest first.
func (t *targetSet) served() []*servedPoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*servedPoint, 0, len(t.targets))
	for _, s := range t.targets {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *servedPoint) int {
		return cmp.Or(a.point.Time.Compare(b.point.Time), cmp.Compare(a.iqn, b.iqn))
	})
	return list
}
