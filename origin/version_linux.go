package origin

import (
	"io/fs"
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
