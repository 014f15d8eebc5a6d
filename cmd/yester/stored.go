package main

import (
	"os"
	"syscall"
)

// storedBytes returns how many bytes f takes on its filesystem; its size where
// that isn't known.
func storedBytes(f *os.File) int64 {
	fi, err := f.Stat()
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512 // st_blocks counts 512 bytes whatever the block size (stat(2))
	}
	return fi.Size()
}
