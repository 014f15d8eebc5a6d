package origin

import (
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

// versionOfFile is versionOf for an open file, without the allocations of
// os.File.Stat: it is asked at every read.
func versionOfFile(f *os.File) (Version, error) {
	var st syscall.Stat_t
	for {
		switch err := syscall.Fstat(int(f.Fd()), &st); err {
		case nil:
			return Version{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}, nil
		case syscall.EINTR:
		default:
			return Version{}, os.NewSyscallError("fstat", err)
		}
	}
}
