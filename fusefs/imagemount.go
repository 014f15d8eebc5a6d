package fusefs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"yester/fusefs/erofs"
	"yester/guestfs"
	"yester/restorepoint"
)

// imageFSType is what /proc/mounts shows as the type of an image's mount, and
// imageSource what its source begins with; the serving process follows.
const (
	imageFSType = "erofs"
	imageSource = "yester:"
)

// moveMountBeneath is MOVE_MOUNT_BENEATH (linux/mount.h), of Linux 6.5.
const moveMountBeneath = 0x200

// asImage reports whether a source can be mounted as an image: whether all that
// its points tell is what an image can tell, and the kernel can be expected to
// take one.
func asImage(src *restorepoint.Source, cat *restorepoint.Catalogue, opt Options) bool {
	if opt.NoEROFS || os.Geteuid() != 0 || src.HostPath() == "" || len(cat.Points) == 0 || len(cat.Points) > imageRegions/2 {
		return false
	}
	for i := range cat.Points {
		if !cat.Points[i].Recorded() {
			return false
		}
	}
	return kernelSince(6, 13)
}

// kernelSince reports whether the kernel is of that version or a later one. Linux
// 6.12 mounts an image from a file of FUSE too, but crashes when it reads it ("erofs:
// fix file-backed mounts over FUSE", in 6.13).
func kernelSince(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b)
	return n == 2 && (a > major || a == major && b >= minor)
}

// mountImage mounts what f shows as an image on dir. Where the kernel can't (it
// takes Linux 6.13 with EROFS for files, and root), the error says why.
func mountImage(f *rawFS, dir string, opt Options) (*images, error) {
	im := &images{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		fs:            f, dir: dir, opt: opt,
		open: make(map[uint64]*generation), trees: make(map[*slot]*imageTree),
		next: 1,
	}
	id, err := processID(os.Getpid())
	if err != nil {
		return nil, err
	}
	im.name = imageSource + id
	if err := im.serve(); err != nil {
		return nil, err
	}
	if err := im.attach(im.generate(), false); err != nil {
		im.root.Close()
		im.server.Wait()
		return nil, err
	}
	return im, nil
}

// processID names a process for as long as the system runs.
func processID(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// proc_pid_stat(5): the name, in parentheses, may hold anything; field 22 is the
	// time at which the process started.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: %q", pid, stat)
	}
	return fmt.Sprintf("%d.%s", pid, fields[19]), nil
}

// serve mounts the filesystem of the image and the devices, in no directory.
func (im *images) serve() error {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	fd, err := newMount("fuse", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC,
		"source", "yester", "fd", fmt.Sprint(dev), "rootmode", "40000", "user_id", "0", "group_id", "0")
	if err != nil {
		unix.Close(dev)
		return err
	}
	im.root = os.NewFile(uintptr(fd), "image")
	im.server, err = fuse.NewServer(im, fmt.Sprintf("/dev/fd/%d", dev), &fuse.MountOptions{
		Name: "yester", MaxWrite: maxRead, MaxBackground: maxBackground, ExplicitDataCacheControl: true, DisableReadDirPlus: true,
		MaxStackDepth: -1, // EROFS takes no files of a filesystem that may itself be stacked
		Logger:        im.fs.warnings(),
	})
	if err != nil {
		im.root.Close()
		return err
	}
	go im.server.Serve()
	if err := im.server.WaitMount(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil {
		setReadAhead(st.Dev, imageReadAheadKB)
	}
	return nil
}

// newMount makes a mount that is in no directory yet, of a filesystem with these
// options: names and values in turns.
func newMount(kind string, attrs int, options ...string) (fd int, err error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for i := 0; i < len(options) && err == nil; i += 2 {
		err = unix.FsconfigSetString(fs, options[i], options[i+1])
	}
	if err == nil {
		err = unix.FsconfigSetFlag(fs, "ro")
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w%s", kind, err, mountLog(fs))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
}

// mountLog returns what the kernel says about a filesystem that it didn't make.
func mountLog(fs int) string {
	buf := make([]byte, 4096)
	var said strings.Builder
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return said.String()
		}
		said.WriteString(" (" + strings.TrimSpace(string(buf[:n])) + ")")
	}
}

// generate makes the image's beginning as the points are now.
func (im *images) generate() *generation {
	f := im.fs
	f.cat.mu.Lock()
	defer f.cat.mu.Unlock()
	im.mu.Lock()
	defer im.mu.Unlock()
	g := &generation{num: 1, upper: make([]byte, imageRoot)}
	if im.cur != nil {
		g.num = im.cur.num + 1
	}
	super, err := erofs.Super(imageRoot>>5, imageDevices)
	if err != nil {
		panic(err) // it is the same each time
	}
	copy(g.upper, super)
	attr := guestfs.Attr{Mode: guestfs.ModeDir | 0o500, Nlink: 2, UID: f.uid, GID: f.gid, Mtime: guestfs.Time{Sec: f.cat.changed.Unix(), Nsec: uint32(f.cat.changed.Nanosecond())}}
	if im.opt.AllowOther {
		attr.Mode = modeDir
	}
	points := func(m *machine) (entries []erofs.Entry) {
		add := func(name string, s *slot) {
			if t := im.treeOf(s); t != nil {
				entries = append(entries, erofs.Entry{Name: name, NID: t.region.Root()})
			} else {
				f.log.Error("the mount has seen too many points and doesn't show this one: unmount it and mount again", "point", s)
			}
		}
		for _, s := range m.order {
			add(s.point.ID, s)
		}
		if l := f.cat.latestLocked(m); l != nil {
			add(latestName, l)
		}
		return entries
	}
	if only := f.cat.only; only != "" {
		_, blocks := erofs.Listing(imageRoot, &attr, imageRoot>>5, points(f.cat.byName[only]))
		g.upper = append(g.upper, blocks...)
	} else {
		g.machines(f.cat.machines, attr, points)
	}
	return g
}

// machines writes a root directory of machines.
func (g *generation) machines(all []*machine, attr guestfs.Attr, points func(*machine) []erofs.Entry) {
	var entries []erofs.Entry
	for _, m := range all {
		if len(m.order) > 0 {
			entries = append(entries, erofs.Entry{Name: m.name})
		}
	}
	_, blocks := erofs.Listing(imageRoot, &attr, imageRoot>>5, entries) // for its length
	at := imageRoot + int64(len(blocks))
	attr.Mode = modeDir
	var below []byte
	i := 0
	for _, m := range all {
		if len(m.order) > 0 {
			nid, blocks := erofs.Listing(at, &attr, imageRoot>>5, points(m))
			entries[i].NID = nid
			below, at, i = append(below, blocks...), at+int64(len(blocks)), i+1
		}
	}
	_, blocks = erofs.Listing(imageRoot, &attr, imageRoot>>5, entries)
	g.upper = append(append(g.upper, blocks...), below...)
}

// attach mounts a generation, in the place of the one before when again is set.
func (im *images) attach(g *generation, again bool) error {
	im.mu.Lock()
	old := im.cur
	im.cur, im.mounting = g, true
	im.mu.Unlock()
	result := make(chan error)
	go func() {
		// EROFS opens its files by their names, which are the shorter for being looked
		// up where they lie. The thread isn't used for anything else after that.
		runtime.LockOSThread()
		result <- im.attachHere(again)
	}()
	err := <-result
	im.mu.Lock()
	defer im.mu.Unlock()
	im.mounting = false
	if err != nil && old != nil {
		im.cur = old
	}
	if len(im.open) == 0 {
		im.root.Close()
	}
	return err
}

func (im *images) attachHere(again bool) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Fchdir(int(im.root.Fd())); err != nil {
		return err
	}
	defer unix.Chdir("/") //nolint:errcheck // or the filesystem would never end
	if again {
		var there unix.Stat_t
		if err := unix.Stat(im.dir, &there); err != nil || there.Dev != im.dev {
			return fmt.Errorf("%s: %w: %w", im.dir, ErrNotMounted, cmp.Or(err, error(unix.EXDEV)))
		}
	}
	attrs := unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if !im.opt.FollowSymlinks {
		attrs |= unix.MOUNT_ATTR_NOSYMFOLLOW
	}
	options := []string{"source", im.name}
	for i := range imageDevices {
		options = append(options, "device", deviceName(i))
	}
	fd, err := newMount(imageFSType, attrs, options...)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	move := func(flags int) error {
		return unix.MoveMount(fd, "", unix.AT_FDCWD, im.dir, unix.MOVE_MOUNT_F_EMPTY_PATH|flags)
	}
	if !again {
		im.dev = st.Dev
		return move(0)
	}
	detach := func() error { return unix.Unmount(im.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }
	if err = move(moveMountBeneath); err == nil {
		err = detach()
	} else if err = detach(); err == nil {
		// Where the mount is propagated to others, nothing can be put beneath it.
		err = move(0)
	}
	if err == nil {
		im.dev = st.Dev
	}
	return err
}

// follow mounts another generation whenever the source's points have changed,
// until stop is closed.
func (im *images) follow(stop <-chan struct{}) {
	tick := time.NewTicker(imageLook)
	defer tick.Stop()
	f := im.fs
	f.cat.mu.Lock()
	shown := f.cat.changed
	f.cat.mu.Unlock()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if err := f.cat.refresh(context.Background(), relistAfter); err != nil {
			f.fail("list", makeID(0, spaceLayout, rootIno), "", err)
		}
		f.cat.mu.Lock()
		changed := f.cat.changed
		f.cat.mu.Unlock()
		if changed.Equal(shown) {
			continue
		}
		if err := im.attach(im.generate(), true); err != nil {
			if !errors.Is(err, ErrNotMounted) {
				f.log.Error("points that have appeared or vanished can't be shown", "error", err)
			}
			continue
		}
		shown = changed
	}
}

// imageLook is how often the source is looked at for new points.
const imageLook = 2 * time.Second
