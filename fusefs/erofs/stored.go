package erofs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"sort"

	"yester/guestfs"
)

// Stored is a Tree that was written to a file, where it stays what it was: what the
// kernel has been told of a tree must never be told differently.
type Stored struct {
	file  *os.File
	at    int64 // of the blocks, then of the files
	size  int64 // of the blocks, bytes
	bad   map[uint32]bool
	files int
	end   uint64
}

// fileRecord is the length of a File as it is stored, in bytes.
const fileRecord = 28

// Store writes the tree to f at off, and returns where it ends.
func (t *Tree) Store(f *os.File, off int64) (*Stored, int64, error) {
	s := &Stored{file: f, at: off, size: int64(t.n) * BlockSize, bad: t.bad, files: len(t.Files), end: t.End}
	w := bufio.NewWriterSize(io.NewOffsetWriter(f, off), 1<<20)
	for i := range t.n {
		if _, err := w.Write(t.block(i)); err != nil {
			return nil, off, err
		}
	}
	var rec [fileRecord]byte
	for _, c := range t.Files {
		le.PutUint64(rec[0:], c.Block)
		le.PutUint64(rec[8:], uint64(c.Size))
		le.PutUint64(rec[16:], c.ID.Ino)
		le.PutUint32(rec[24:], c.ID.Sub)
		if _, err := w.Write(rec[:]); err != nil {
			return nil, off, err
		}
	}
	return s, off + s.size + int64(s.files)*fileRecord, w.Flush()
}

// Size returns the region's length, in bytes.
func (s *Stored) Size() int64 { return HeadSize + s.size }

// ReadAt fills p from off, relative to the region and behind the head. What lies
// behind the end is zeros; what stands for something that the tree could not tell is
// ErrUnreadable.
func (s *Stored) ReadAt(p []byte, off int64) (int, error) {
	at := off - HeadSize
	if at < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	for i := at >> BlockBits; i<<BlockBits < min(at+int64(len(p)), s.size); i++ {
		if s.bad[uint32(i)] {
			return 0, ErrUnreadable
		}
	}
	n := int(max(0, min(int64(len(p)), s.size-at)))
	clear(p[n:])
	if got, err := s.file.ReadAt(p[:n], s.at+at); got < n {
		return got, fmt.Errorf("metadata in a temporary file: %w", err)
	}
	return len(p), nil
}

// Files reads the list of the files and their places.
func (s *Stored) Files() (*Files, error) {
	data := make([]byte, s.files*fileRecord)
	if got, err := s.file.ReadAt(data, s.at+s.size); got < len(data) {
		return nil, fmt.Errorf("metadata in a temporary file: %w", err)
	}
	l := &Files{List: make([]File, s.files), End: s.end}
	for i := range l.List {
		rec := data[i*fileRecord:]
		l.List[i] = File{Block: le.Uint64(rec), Size: int64(le.Uint64(rec[8:])), ID: guestfs.ID{Ino: le.Uint64(rec[16:]), Sub: le.Uint32(rec[24:])}}
	}
	return l, nil
}

// Files are the files of a tree that aren't empty.
type Files struct {
	List []File // by ascending Block
	End  uint64 // of the last one's space
}

// At returns the index in List of the one whose place a block below End is in or
// behind (-1: it is before the first); and how many blocks there are from that
// file's first to the next one's.
func (l *Files) At(block uint64) (i int, blocks uint64) {
	i = sort.Search(len(l.List), func(i int) bool { return l.List[i].Block > block }) - 1
	if i < 0 {
		return i, 0
	}
	end := l.End
	if i+1 < len(l.List) {
		end = l.List[i+1].Block
	}
	return i, end - l.List[i].Block
}
