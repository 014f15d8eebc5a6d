package rdiff

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strconv"
)

// setFork reads a resource fork, in hexadecimal; "None" for an empty one.
func (s *scanner) setFork(value []byte) error {
	s.set |= hasFork
	if string(value) == "None" {
		s.fork = nil
		return nil
	}
	s.fork = make([]byte, hex.DecodedLen(len(value)))
	if _, err := hex.Decode(s.fork, value); err != nil {
		return s.corrupt("resource fork that is no hexadecimal")
	}
	return nil
}

// setFinder reads what rdiff-backup calls CarbonFile, and puts it as FinderInfo has
// it: creator:HEX|type:HEX|location:H,V|flags:N|createDate:N. The creation date has
// no place there.
func (s *scanner) setFinder(value []byte) error {
	if string(value) == "None" {
		return nil
	}
	info := make([]byte, finderInfoSize)
	for part := range bytes.SplitSeq(value, []byte("|")) {
		key, v, ok := bytes.Cut(part, []byte(":"))
		if !ok {
			return s.corrupt("CarbonFile %q", clip(value))
		}
		switch string(key) {
		case "type":
			ok = fourBytes(info[0:4], v)
		case "creator":
			ok = fourBytes(info[4:8], v)
		case "flags":
			ok = short(info[8:10], v)
		case "location":
			h, y, comma := bytes.Cut(v, []byte(","))
			ok = comma && short(info[12:14], h) && short(info[10:12], y)
		}
		if !ok {
			return s.corrupt("CarbonFile %q", clip(value))
		}
	}
	s.finder = info
	return nil
}

// fourBytes decodes a type or creator code. Releases that run on Python 3 write it
// in the form that Python prints byte strings in: b'74657874'.
func fourBytes(dst, v []byte) bool {
	if len(v) == 11 && v[0] == 'b' && v[1] == '\'' && v[10] == '\'' {
		v = v[2:10]
	}
	if len(v) != 8 {
		return false
	}
	_, err := hex.Decode(dst, v)
	return err == nil
}

// short decodes a number of 16 bits, with or without sign.
func short(dst, v []byte) bool {
	n, err := strconv.ParseInt(string(v), 10, 32)
	if err != nil || n < -1<<15 || n >= 1<<16 {
		return false
	}
	binary.BigEndian.PutUint16(dst, uint16(n))
	return true
}
