package origin

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// openFlags keeps an open from blocking on a FIFO that took a file's place
// between listing and opening.
const openFlags = syscall.O_NONBLOCK | syscall.O_NOCTTY

func versionOf(fi fs.FileInfo) Version {
	v := Version{Size: fi.Size(), Mtime: fi.ModTime().UnixNano()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		v.Dev, v.Ino, v.Ctime = st.Dev, st.Ino, st.Ctim.Nano()
	}
	return v
}

// allocatedOf returns Entry.Allocated.
func allocatedOf(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return 0
}

// versionOfFile is versionOf for an open file, without the allocations of
// os.File.Stat: it is asked at every read.
func versionOfFile(f *os.File) (Version, error) {
	st, err := fstat(int(f.Fd()))
	if err != nil {
		return Version{}, os.NewSyscallError("fstat", err)
	}
	return versionOfStat(&st), nil
}

// openDirFlags makes an open fail on what is no directory.
const openDirFlags = syscall.O_DIRECTORY | syscall.O_NOFOLLOW

// infoOf turns what os.Root's Lstat gave into an Info.
func infoOf(fi fs.FileInfo) (Info, error) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return Info{}, fmt.Errorf("%s: no stat of it", fi.Name())
	}
	return infoOfStat(st), nil
}
