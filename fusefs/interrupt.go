package fusefs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// patient keeps interrupts from those who don't expect them. The kernel sends
// one for whatever signal the waiting process gets, a timer or a resized window
// too, and EINTR from stat(2) or readdir(3) is something that no other
// filesystem gives and few programs are ready for: they would leave the file
// out. So a request that was abandoned is begun again, to its end, unless whoever
// waits for it is being killed.
type patient struct{ *rawFS }

// again reports whether an interrupted request must be answered nevertheless.
func again(st fuse.Status, h *fuse.InHeader) bool {
	return st == fuse.EINTR && !dying(h.Pid)
}

// dying reports whether a thread is about to be killed; of a signal that ends
// the process the kernel makes a SIGKILL for each of its threads (kernel/signal.c,
// complete_signal). The thread is 0 when it is in another PID namespace.
func dying(tid uint32) bool {
	if tid == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return true // gone
	}
	for _, line := range bytes.Split(status, []byte("\n")) {
		mask, ok := bytes.CutPrefix(line, []byte("SigPnd:"))
		if !ok {
			mask, ok = bytes.CutPrefix(line, []byte("ShdPnd:"))
		}
		if !ok {
			continue
		}
		pending, err := strconv.ParseUint(string(bytes.TrimSpace(mask)), 16, 64)
		if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

// Lookup implements fuse.RawFileSystem.
func (p patient) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	st := p.rawFS.Lookup(cancel, h, name, out)
	if again(st, h) {
		*out = fuse.EntryOut{}
		st = p.rawFS.Lookup(nil, h, name, out)
	}
	return st
}

// GetAttr implements fuse.RawFileSystem.
func (p patient) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	st := p.rawFS.GetAttr(cancel, in, out)
	if again(st, &in.InHeader) {
		st = p.rawFS.GetAttr(nil, in, out)
	}
	return st
}

// Statx implements fuse.RawFileSystem.
func (p patient) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	st := p.rawFS.Statx(cancel, in, out)
	if again(st, &in.InHeader) {
		st = p.rawFS.Statx(nil, in, out)
	}
	return st
}

// Readlink implements fuse.RawFileSystem.
func (p patient) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	target, st := p.rawFS.Readlink(cancel, h)
	if again(st, h) {
		target, st = p.rawFS.Readlink(nil, h)
	}
	return target, st
}

// StatFs implements fuse.RawFileSystem.
func (p patient) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	st := p.rawFS.StatFs(cancel, h, out)
	if again(st, h) {
		st = p.rawFS.StatFs(nil, h, out)
	}
	return st
}

// Open implements fuse.RawFileSystem.
func (p patient) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	st := p.rawFS.Open(cancel, in, out)
	if again(st, &in.InHeader) {
		*out = fuse.OpenOut{}
		st = p.rawFS.Open(nil, in, out)
	}
	return st
}

// Read implements fuse.RawFileSystem.
func (p patient) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	res, st := p.rawFS.Read(cancel, in, buf)
	if again(st, &in.InHeader) {
		res, st = p.rawFS.Read(nil, in, buf)
	}
	return res, st
}

// Lseek implements fuse.RawFileSystem.
func (p patient) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	st := p.rawFS.Lseek(cancel, in, out)
	if again(st, &in.InHeader) {
		st = p.rawFS.Lseek(nil, in, out)
	}
	return st
}

// ReadDir implements fuse.RawFileSystem. An interrupt after the first entry is no
// error: the next call goes on behind those that were read.
func (p patient) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	st := p.rawFS.ReadDir(cancel, in, out)
	if again(st, &in.InHeader) {
		st = p.rawFS.ReadDir(nil, in, out)
	}
	return st
}

// ReadDirPlus implements fuse.RawFileSystem.
func (p patient) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	st := p.rawFS.ReadDirPlus(cancel, in, out)
	if again(st, &in.InHeader) {
		st = p.rawFS.ReadDirPlus(nil, in, out)
	}
	return st
}

// GetXAttr implements fuse.RawFileSystem.
func (p patient) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n, st := p.rawFS.GetXAttr(cancel, h, name, dest)
	if again(st, h) {
		n, st = p.rawFS.GetXAttr(nil, h, name, dest)
	}
	return n, st
}

// ListXAttr implements fuse.RawFileSystem.
func (p patient) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, st := p.rawFS.ListXAttr(cancel, h, dest)
	if again(st, h) {
		n, st = p.rawFS.ListXAttr(nil, h, dest)
	}
	return n, st
}
