package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"runtime"
	"slices"
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
	dir, err := canonical(dir) // mounts don't follow links
	if err != nil {
		return nil, err
	}
	im := &images{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		fs:            f, dir: dir, opt: opt,
		open: make(map[uint64]*generation), trees: make(map[*slot]*imageTree), said: make(map[*slot]bool),
		next: 1, walked: -2,
	}
	id, err := processID(os.Getpid())
	if err != nil {
		return nil, err
	}
	im.name = imageSource + id
	first, err := im.generate()
	if err != nil {
		return nil, err
	}
	if im.spool, err = os.CreateTemp("", "yester-image-"); err != nil {
		return nil, err
	}
	if err = os.Remove(im.spool.Name()); err == nil {
		err = im.serve()
	}
	if err != nil {
		im.spool.Close()
		return nil, err
	}
	if err := im.attach(first, false); err != nil {
		im.end()
		im.wait()
		return nil, err
	}
	if opt.AllowOther && !aclsHold(dir) {
		err := errors.Join(errNoACLs, unix.Unmount(dir, unix.MNT_DETACH))
		im.wait()
		return nil, err
	}
	return im, nil
}

var errNoACLs = errors.New("this kernel's EROFS knows no ACLs, by which others would be let in")

// aclsHold reports whether the filesystem mounted on dir obeys ACLs. Without them,
// group bits would be permissions that are a mask.
func aclsHold(dir string) bool {
	mounts, _ := mountpoints()
	i := slices.IndexFunc(mounts, func(m mountpoint) bool { return m.dir == dir })
	return i >= 0 && slices.Contains(strings.Split(mounts[i].options, ","), "acl")
}

// wait returns once the filesystem of the image is gone.
func (im *images) wait() {
	im.server.Wait()
	im.spool.Close()
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
	if fields[0] == "Z" || fields[0] == "X" {
		return "", fmt.Errorf("process %d has ended: %w", pid, os.ErrNotExist)
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
	// The server has the device's descriptor from here on.
	im.server, err = fuse.NewServer(im, fmt.Sprintf("/dev/fd/%d", dev), &fuse.MountOptions{
		Name: "yester", MaxWrite: maxRead, MaxBackground: maxBackground, ExplicitDataCacheControl: true, DisableReadDirPlus: true,
		MaxStackDepth: -1, // EROFS takes no files of a filesystem that may itself be stacked
		Logger:        log.New(endWriter{im, im.fs.warnings().Writer()}, "", 0),
	})
	if err != nil {
		im.end()
		return err
	}
	go im.server.Serve()
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
func (im *images) generate() (*generation, error) {
	f := im.fs
	f.cat.mu.Lock()
	defer f.cat.mu.Unlock()
	im.mu.Lock()
	defer im.mu.Unlock()
	// A number is never used again, even if this generation isn't mounted in the end:
	// the kernel may keep what it has read of it.
	im.generations++
	g := &generation{num: im.generations, upper: make([]byte, imageRoot)}
	super, err := erofs.Super(erofs.NID(imageRoot), imageDevices)
	if err != nil {
		return nil, err
	}
	copy(g.upper, super)
	attr := guestfs.Attr{Mode: guestfs.ModeDir | 0o500, Nlink: 2, UID: f.uid, GID: f.gid, Mtime: guestfs.Time{Sec: f.cat.changed.Unix(), Nsec: uint32(f.cat.changed.Nanosecond())}}
	if im.opt.AllowOther {
		attr.Mode = modeDir
	}
	points := func(m *machine) (entries []erofs.Entry) {
		add := func(name string, s *slot) {
			t := im.treeOf(s)
			switch {
			case !s.point.Recorded():
				im.once("this point isn't shown before it is mounted again, or with --no-erofs: it isn't like the others", s)
			case t == nil:
				im.once("the mount has seen too many points and doesn't show this one: unmount it and mount again", s)
			default:
				entries = append(entries, erofs.Entry{Name: name, NID: t.region.Root()})
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
		_, blocks := erofs.Listing(imageRoot, &attr, erofs.NID(imageRoot), points(f.cat.byName[only]))
		g.upper = append(g.upper, blocks...)
	} else {
		g.machines(f.cat.machines, attr, points)
	}
	if len(g.upper) > imageUpper {
		return nil, fmt.Errorf("%d machines: %w", len(f.cat.machines), erofs.ErrTooLarge)
	}
	return g, nil
}

// once logs something about a point, the first time that it is said; im.mu is held.
func (im *images) once(text string, s *slot) {
	if !im.said[s] {
		im.said[s] = true
		im.fs.log.Warn(text, "point", s)
	}
}

// machines writes a root directory of machines.
func (g *generation) machines(all []*machine, attr guestfs.Attr, points func(*machine) []erofs.Entry) {
	var entries []erofs.Entry
	for _, m := range all {
		if len(m.order) > 0 {
			entries = append(entries, erofs.Entry{Name: m.name})
		}
	}
	_, blocks := erofs.Listing(imageRoot, &attr, erofs.NID(imageRoot), entries) // for its length
	at := imageRoot + int64(len(blocks))
	attr.Mode = modeDir
	var below []byte
	i := 0
	for _, m := range all {
		if len(m.order) > 0 {
			nid, blocks := erofs.Listing(at, &attr, erofs.NID(imageRoot), points(m))
			entries[i].NID = nid
			below, at, i = append(below, blocks...), at+int64(len(blocks)), i+1
		}
	}
	_, blocks = erofs.Listing(imageRoot, &attr, erofs.NID(imageRoot), entries)
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
		im.end()
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
	id, err := mountID(fd, unix.STATX_MNT_ID_UNIQUE)
	if err != nil {
		return err
	}
	move := func(flags int) error {
		return unix.MoveMount(fd, "", unix.AT_FDCWD, im.dir, unix.MOVE_MOUNT_F_EMPTY_PATH|flags)
	}
	if !again {
		im.mount = id
		return move(0)
	}
	old, err := im.mounted()
	if err != nil {
		return err
	}
	defer unix.Close(old)
	// By its descriptor: this very mount, whatever the directory's name leads to now.
	detach := func() error { return unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", old), unix.MNT_DETACH) }
	if err = move(moveMountBeneath); err == nil {
		err = detach()
	} else if err = detach(); err == nil {
		// Where the mount is propagated to others, nothing can be put beneath it.
		if err = move(0); err != nil {
			err = fmt.Errorf("%s is no longer mounted, mount it again: %w", im.dir, err)
		}
	}
	if err == nil {
		im.mount = id
	}
	return err
}

// errInUse means that a mount can't be replaced yet.
var errInUse = errors.New("other filesystems are mounted in it")

// mounted opens the mount that shows the image now. It must be there, uncovered, and
// nothing be mounted in it, which would go with it.
func (im *images) mounted() (fd int, err error) {
	fd, err = unix.Open(im.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w: %w", im.dir, ErrNotMounted, err)
	}
	id, err := mountID(fd, unix.STATX_MNT_ID_UNIQUE)
	if err == nil && id != im.mount {
		err = fmt.Errorf("%s: %w", im.dir, ErrNotMounted)
	}
	if err == nil {
		id, err = mountID(fd, unix.STATX_MNT_ID)
	}
	if err == nil {
		var data []byte
		data, err = os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(data)) {
			// proc_pid_mountinfo(5): (1) mount ID (2) parent ID …
			if f := strings.Fields(line); len(f) > 4 && f[1] == fmt.Sprint(id) {
				err = fmt.Errorf("%s: %w: %s", im.dir, errInUse, unescape(f[4]))
			}
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mountID returns the number of the mount that a descriptor is of: STATX_MNT_ID is
// mountinfo's, STATX_MNT_ID_UNIQUE is never used again.
func mountID(fd int, which uint32) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, int(which), &st); err != nil {
		return 0, err
	}
	if st.Mask&which == 0 {
		return 0, errors.ErrUnsupported
	}
	return st.Mnt_id, nil
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
	var said string // why the last try has failed
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if time.Since(time.Unix(0, f.stats.last.Load())) > imageAsleep && n%imageSeldom != 0 {
			continue
		}
		err := f.cat.refresh(context.Background(), relistAfter)
		f.cat.mu.Lock()
		changed := f.cat.changed
		f.cat.mu.Unlock()
		if err == nil && !changed.Equal(shown) {
			if err = im.replace(); err == nil {
				shown = changed
			}
		}
		if err == nil {
			said = ""
		} else if text := err.Error(); text != said {
			said = text
			f.log.Warn("points that appear or vanish aren't shown for now", "error", err)
		}
	}
}

// replace mounts another generation in the place of the present one.
func (im *images) replace() error {
	fd, err := im.mounted()
	if err != nil {
		return err
	}
	unix.Close(fd)
	g, err := im.generate()
	if err != nil {
		return err
	}
	return im.attach(g, true)
}

const (
	// imageLook is how often the source is looked at for new points; one in
	// imageSeldom times once nobody has asked for anything for imageAsleep.
	imageLook   = 2 * time.Second
	imageSeldom = 15
	imageAsleep = 2 * time.Minute
)
