package fusefs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotMounted means that there is no mount of yester's at a directory.
var ErrNotMounted = errors.New("not a yester mount")

// ErrBusy means that a mount is in use.
var ErrBusy = errors.New("in use")

// Mounted reports whether dir is a mount of yester's, and whether the process
// that served it is dead.
func Mounted(dir string) (mounted, dead bool, err error) {
	dir, err = canonical(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	mounts, err := mountpoints()
	if err != nil {
		return false, false, err
	}
	i := slices.IndexFunc(mounts, func(m mountpoint) bool { return m.dir == dir })
	if i < 0 {
		return false, false, nil
	}
	if process := mounts[i].process; process != "" {
		pid, _ := strconv.Atoi(process[:max(0, strings.IndexByte(process, '.'))])
		now, err := processID(pid)
		// Of what can't be looked at (hidepid), it isn't known.
		return true, errors.Is(err, os.ErrNotExist) || err == nil && now != process, nil
	}
	// Not stat, which the kernel may answer by itself.
	var st unix.Statfs_t
	return true, errors.Is(unix.Statfs(dir, &st), unix.ENOTCONN), nil
}

// canonical returns dir as mountinfo has it. A mount whose process is dead can't
// be looked at, only the folders above it.
func canonical(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// Mountpoints returns the directories on which yester is mounted, whoever
// mounted it.
func Mountpoints() ([]string, error) {
	mounts, err := mountpoints()
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, m.dir)
	}
	return dirs, err
}

// mountpoint is a mount of yester's.
type mountpoint struct {
	dir     string
	process string // of an image: processID of the process that serves it
	options string // the filesystem's own
}

func mountpoints() ([]mountpoint, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []mountpoint
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		// proc_pid_mountinfo(5): … (5) mount point … - (9) type (10) source …
		before, after, _ := strings.Cut(sc.Text(), " - ")
		f, fs := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(fs) < 3 {
			continue
		}
		process, image := strings.CutPrefix(fs[1], imageSource)
		if fs[0] == FSType {
			process = ""
		} else if fs[0] != imageFSType || !image {
			continue
		}
		found = append(found, mountpoint{unescape(f[4]), process, fs[2]})
	}
	return found, sc.Err()
}

// unescape undoes the octal escapes in which mountinfo writes blanks.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Unmount takes the mount at dir away. A lazy one takes the name away at once
// and the rest when the last user has gone. What a dead process left behind is
// always taken away lazily: nothing in it can be used any more.
func Unmount(dir string, lazy bool) error {
	mounted, dead, err := Mounted(dir)
	if err != nil {
		return err
	}
	if !mounted {
		return fmt.Errorf("%s: %w", dir, ErrNotMounted)
	}
	if dir, err = canonical(dir); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy || dead {
			flags |= unix.MNT_DETACH
		}
		switch err := unix.Unmount(dir, flags); err {
		case nil:
			return nil
		case unix.EBUSY:
			return fmt.Errorf("%s: %w", dir, ErrBusy)
		default:
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
	}
	arg := "-u"
	if lazy || dead {
		arg = "-uz"
	}
	out, err := exec.Command("fusermount3", arg, dir).CombinedOutput()
	if err == nil {
		return nil
	}
	if strings.Contains(string(out), "busy") {
		return fmt.Errorf("%s: %w", dir, ErrBusy)
	}
	return fmt.Errorf("unmounting %s: %s: %w", dir, bytes.TrimSpace(out), err)
}
