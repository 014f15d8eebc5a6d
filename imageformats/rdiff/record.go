package rdiff

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// fields is one record of a metadata file. Its slices are the scanner's, and valid
// until the next record.
type fields struct {
	path     []byte // components joined by '/'; empty for the root
	mode     uint32 // type bits and permissions; 0 for a record of Type None
	set      fieldSet
	size     int64
	mtime    int64
	uid, gid uint32
	uname    []byte // empty: none
	gname    []byte
	digest   [20]byte // SHA-1 of the content
	target   []byte   // of a symbolic link
	major    uint32
	minor    uint32
	links    uint32 // of a file with several names: how many, and which file
	inode    uint64
	device   uint64
	alt      altNames
	fork     []byte // resource fork
	finder   []byte // FinderInfo; empty: none
}

// altNames are where the mirror file or the increments lie of a path whose own name
// is too long: in longNamesDir, under a number.
type altNames struct {
	mirror, increment string
}

// fieldSet says which fields a record had.
type fieldSet uint16

const (
	hasType fieldSet = 1 << iota
	hasSize
	hasMtime
	hasUID
	hasGID
	hasPerms
	hasDigest
	hasTarget
	hasDevice
	hasLinks
	hasInode
	hasDeviceLoc
	hasFork
)

// scanner reads the records of one metadata file.
type scanner struct {
	ctx  context.Context
	in   *bufio.Reader
	name string
	off  int64  // where the line that was read last begins, in the decompressed text
	next int64  // and where it ends
	line []byte // without its newline; of the buffer, or of long
	long []byte

	want    []byte // when set, fields of other paths are passed over
	started bool   // line is the beginning of the next record
	count   int
	fields
	prev  []byte // path of the record before
	pathB []byte
	strB  [3][]byte
}

func newScanner(ctx context.Context, in io.Reader, name string) *scanner {
	return &scanner{ctx: ctx, in: bufio.NewReaderSize(in, 128<<10), name: name}
}

func (s *scanner) corrupt(msg string, args ...any) error {
	return ondisk.Corruptf(format, s.name, s.off, msg, args...)
}

// readLine reads one line. io.EOF comes without one.
func (s *scanner) readLine() error {
	s.off = s.next
	s.line = s.line[:0]
	b, err := s.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		s.long = append(s.long[:0], b...)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(s.long) > maxLine {
				return s.corrupt("line longer than %d bytes", maxLine)
			}
			b, err = s.in.ReadSlice('\n')
			s.long = append(s.long, b...)
		}
		b = s.long
	}
	s.next += int64(len(b))
	switch {
	case err == nil:
		s.line = b[:len(b)-1]
		return nil
	case err == io.EOF && len(b) == 0:
		return io.EOF
	case err == io.EOF:
		return s.corrupt("cut off in the middle of a line")
	}
	return &ondisk.FormatError{Format: format, Field: s.name, Off: s.off, Msg: "reading it", Err: corruptGzip(err)}
}

var fileWord = []byte("File ")

// scan reads the next record; io.EOF after the last. Paths come in strictly
// ascending order, by their components.
func (s *scanner) scan() error {
	if !s.started {
		if err := s.readLine(); err != nil {
			return err
		}
	}
	s.started = false
	if !bytes.HasPrefix(s.line, fileWord) {
		return s.corrupt("a record must begin with %q, this with %q", fileWord, clip(s.line))
	}
	if s.count&0xfff == 0 {
		if err := s.ctx.Err(); err != nil {
			return err
		}
	}
	if s.count++; s.count > maxRecords {
		return s.corrupt("more than %d records", maxRecords)
	}
	if err := s.setPath(s.line[len(fileWord):]); err != nil {
		return err
	}
	s.fields = fields{path: s.pathB}
	for {
		err := s.readLine()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if bytes.HasPrefix(s.line, fileWord) {
			s.started = true
			break
		}
		if s.want != nil && !bytes.Equal(s.want, s.pathB) {
			continue
		}
		if err := s.field(); err != nil {
			return err
		}
	}
	if s.want != nil && !bytes.Equal(s.want, s.pathB) {
		return nil
	}
	return s.check()
}

// setPath takes over the path of a record and verifies it.
func (s *scanner) setPath(quoted []byte) error {
	s.prev, s.pathB = s.pathB, s.prev
	if len(quoted) > 2*maxPath {
		return s.corrupt("path of %d bytes", len(quoted))
	}
	if len(quoted) == 1 && quoted[0] == '.' {
		s.pathB = s.pathB[:0]
	} else {
		s.pathB = unescape(s.pathB[:0], quoted)
		if err := checkPath(s.pathB); err != nil {
			return s.corrupt("%v", err)
		}
	}
	if s.count > 1 && comparePaths(s.prev, s.pathB) >= 0 {
		return s.corrupt("path %q after %q", clip(s.pathB), clip(s.prev))
	}
	return nil
}

var (
	errPathLong = errors.New("path too long")
	errPathName = errors.New("path with an impossible component")
)

// checkPath verifies that path consists of names that a directory can hold.
func checkPath(path []byte) error {
	if len(path) > maxPath {
		return errPathLong
	}
	for start := 0; start <= len(path); {
		n := bytes.IndexByte(path[start:], '/')
		if n < 0 {
			n = len(path) - start
		}
		name := path[start : start+n]
		if n == 0 || n > maxName || n == 1 && name[0] == '.' || n == 2 && name[0] == '.' && name[1] == '.' {
			return errPathName
		}
		start += n + 1
	}
	if bytes.IndexByte(path, 0) >= 0 {
		return errPathName
	}
	return nil
}

// comparePaths orders paths by their components, as records are: "a/b" is before
// "a-b", though '-' is less than '/'.
func comparePaths[A, B ~[]byte | ~string](a A, b B) int {
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x == '/' {
			return -1
		}
		if y == '/' || x > y {
			return 1
		}
		return -1
	}
	return len(a) - len(b)
}

// unescape appends s to dst with \n and \\ replaced by what they stand for.
func unescape(dst, s []byte) []byte {
	for {
		i := bytes.IndexByte(s, '\\')
		if i < 0 || i+1 == len(s) {
			return append(dst, s...)
		}
		dst = append(dst, s[:i]...)
		switch s[i+1] {
		case 'n':
			dst = append(dst, '\n')
		case '\\':
			dst = append(dst, '\\')
		default:
			dst = append(dst, '\\', s[i+1])
		}
		s = s[i+2:]
	}
}

// clip shortens what is quoted in a message.
func clip(b []byte) []byte { return b[:min(len(b), 200)] }

// field reads the line of one field.
func (s *scanner) field() error {
	line := s.line
	for len(line) > 0 && line[0] == ' ' {
		line = line[1:]
	}
	n := 0
	for n < len(line) && line[n] != ' ' { // names are too short for bytes.IndexByte to pay
		n++
	}
	if n == len(line) {
		return s.corrupt("field %q without a value", clip(line))
	}
	name, value := line[:n], line[n+1:]
	var err error
	switch string(name) {
	case "Type":
		return s.setType(value)
	case "Size":
		s.size, err = s.integer(name, value, 0, math.MaxInt64, hasSize)
	case "ModTime":
		s.mtime, err = s.integer(name, value, math.MinInt64, math.MaxInt64, hasMtime)
	case "Uid":
		s.uid, err = s.owner(name, value, hasUID)
	case "Gid":
		s.gid, err = s.owner(name, value, hasGID)
	case "Uname":
		s.uname = s.keep(0, nameOf(value))
	case "Gname":
		s.gname = s.keep(1, nameOf(value))
	case "Permissions":
		var v int64
		v, err = s.integer(name, value, 0, 0o7777, hasPerms)
		s.mode |= uint32(v)
	case "SHA1Digest":
		if string(value) == "None" {
			return nil
		}
		if len(value) != 40 {
			return s.corrupt("SHA1Digest %q", clip(value))
		}
		if _, err := hex.Decode(s.digest[:], value); err != nil {
			return s.corrupt("SHA1Digest %q", clip(value))
		}
		s.set |= hasDigest
	case "SymData":
		if len(value) > 2*maxTarget {
			return s.corrupt("link target of %d bytes", len(value))
		}
		s.strB[2] = unescape(s.strB[2][:0], value)
		s.target = s.strB[2]
		s.set |= hasTarget
	case "DeviceNum":
		return s.setDevice(value)
	case "NumHardLinks":
		var v int64
		v, err = s.integer(name, value, 0, math.MaxUint32, hasLinks)
		s.links = uint32(v)
	case "Inode":
		s.inode, err = s.serial(name, value, hasInode)
	case "DeviceLoc":
		s.device, err = s.serial(name, value, hasDeviceLoc)
	case "AlternateMirrorName":
		s.alt.mirror, err = s.altName(value)
	case "AlternateIncrementName":
		s.alt.increment, err = s.altName(value)
	case "ResourceFork":
		return s.setFork(value)
	case "CarbonFile":
		return s.setFinder(value)
	}
	return err
}

// keep copies a value that must outlive the line.
func (s *scanner) keep(i int, v []byte) []byte {
	s.strB[i] = append(s.strB[i][:0], v...)
	return s.strB[i]
}

// nameOf returns an owner's name; ":" stands for none.
func nameOf(v []byte) []byte {
	if len(v) == 1 && v[0] == ':' || string(v) == "None" {
		return nil
	}
	return v
}

// integer reads a decimal number within bounds.
func (s *scanner) integer(name, value []byte, low, high int64, set fieldSet) (int64, error) {
	digits := value
	negative := len(digits) > 0 && digits[0] == '-'
	if negative {
		digits = digits[1:]
	}
	var v uint64
	ok := len(digits) > 0 && len(digits) <= 19
	for _, c := range digits {
		ok = ok && c >= '0' && c <= '9'
		v = v*10 + uint64(c-'0')
	}
	if !ok || v > math.MaxInt64 {
		return 0, s.corrupt("%s %q", name, clip(value))
	}
	n := int64(v)
	if negative {
		n = -n
	}
	if n < low || n > high {
		return 0, s.corrupt("%s %q", name, clip(value))
	}
	s.set |= set
	return n, nil
}

// owner reads an id. What has none (Windows) may be recorded as -1.
func (s *scanner) owner(name, value []byte, set fieldSet) (uint32, error) {
	v, err := s.integer(name, value, -1, math.MaxUint32, set)
	return uint32(v), err
}

// serial reads an inode or device number, which use all of 64 bits.
func (s *scanner) serial(name, value []byte, set fieldSet) (uint64, error) {
	var v uint64
	ok := len(value) > 0 && len(value) <= 20
	for _, c := range value {
		d := uint64(c - '0')
		ok = ok && c >= '0' && c <= '9' && v <= (math.MaxUint64-d)/10
		v = v*10 + d
	}
	if !ok {
		if len(value) > 0 && value[0] == '-' {
			n, err := s.integer(name, value, math.MinInt64, 0, set)
			return uint64(n), err
		}
		return 0, s.corrupt("%s %q", name, clip(value))
	}
	s.set |= set
	return v, nil
}

func (s *scanner) setType(value []byte) error {
	var mode uint32
	switch string(value) {
	case "reg":
		mode = guestfs.ModeRegular
	case "dir":
		mode = guestfs.ModeDir
	case "sym":
		mode = guestfs.ModeSymlink
	case "fifo":
		mode = guestfs.ModeFifo
	case "sock":
		mode = guestfs.ModeSocket
	case "dev":
		mode = guestfs.ModeChar // until DeviceNum says
	case "None":
	default:
		return ondisk.Unsupportedf(format, s.name, s.off, "file of type %q", clip(value))
	}
	s.mode |= mode
	s.set |= hasType
	return nil
}

// setDevice reads "c 1 3".
func (s *scanner) setDevice(value []byte) error {
	parts := bytes.Split(value, []byte(" "))
	if len(parts) != 3 || len(parts[0]) != 1 || parts[0][0] != 'c' && parts[0][0] != 'b' {
		return s.corrupt("DeviceNum %q", clip(value))
	}
	major, err := s.integer([]byte("DeviceNum"), parts[1], 0, math.MaxUint32, hasDevice)
	if err != nil {
		return err
	}
	minor, err := s.integer([]byte("DeviceNum"), parts[2], 0, math.MaxUint32, hasDevice)
	if err != nil {
		return err
	}
	s.major, s.minor = uint32(major), uint32(minor)
	if parts[0][0] == 'b' {
		s.mode = s.mode&^guestfs.ModeType | guestfs.ModeBlock
	}
	return nil
}

// altName reads the name of a file in longNamesDir, which is a number.
func (s *scanner) altName(value []byte) (string, error) {
	ok := len(value) > 0 && len(value) <= 20
	for _, c := range value {
		ok = ok && c >= '0' && c <= '9'
	}
	if !ok {
		return "", s.corrupt("alternate name %q is no number", clip(value))
	}
	return string(value), nil
}

// check verifies that the record has what its type needs.
func (s *scanner) check() error {
	if s.set&hasType == 0 {
		return s.corrupt("record of %q without a type", clip(s.path))
	}
	need := hasPerms | hasUID | hasGID
	switch s.mode & guestfs.ModeType {
	case 0:
		s.mode = 0
		return nil
	case guestfs.ModeRegular:
		need |= hasSize | hasMtime
	case guestfs.ModeSymlink:
		need |= hasTarget
	case guestfs.ModeChar, guestfs.ModeBlock:
		need |= hasDevice
	}
	if s.set&need != need {
		return s.corrupt("record of %q lacks fields of its type", clip(s.path))
	}
	if len(s.path) == 0 && s.mode&guestfs.ModeType != guestfs.ModeDir {
		return s.corrupt("the root is no directory")
	}
	return nil
}
