package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A record is a small file: magic, lengths of key and data, both, and the CRC-32C
// of all before it.
const (
	recordMagic = "YSTRREC\x01"
	recKeyLen   = 8  // u32, bytes
	recDataLen  = 12 // u32, bytes
	recKey      = 16

	// MaxBlob is the longest record, in bytes: it is held in memory whole.
	MaxBlob = 256 << 20
	// maxMemoryBlobs bounds the records of a store without a directory, in bytes.
	maxMemoryBlobs = 256 << 20
)

func encodeRecord(key string, data []byte) []byte {
	p := make([]byte, recKey, recKey+len(key)+len(data)+4)
	copy(p, recordMagic)
	binary.LittleEndian.PutUint32(p[recKeyLen:], uint32(len(key)))
	binary.LittleEndian.PutUint32(p[recDataLen:], uint32(len(data)))
	p = append(append(p, key...), data...)
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

func parseRecord(p []byte) (key string, data []byte, ok bool) {
	if len(p) < recKey+4 || string(p[:len(recordMagic)]) != recordMagic {
		return "", nil, false
	}
	body, sum := p[:len(p)-4], binary.LittleEndian.Uint32(p[len(p)-4:])
	keyLen, dataLen := uint64(binary.LittleEndian.Uint32(p[recKeyLen:])), uint64(binary.LittleEndian.Uint32(p[recDataLen:]))
	if recKey+keyLen+dataLen != uint64(len(body)) || crc32.Checksum(body, castagnoli) != sum {
		return "", nil, false
	}
	return string(body[recKey : recKey+keyLen]), body[recKey+keyLen:], true
}

// readRecord reads the record in a file; ok is false for one that isn't there,
// or isn't whole.
func (s *Store) readRecord(name string) (key string, data []byte, ok bool) {
	f, err := s.dir.open(name, unix.O_RDONLY)
	if err != nil {
		return "", nil, false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() > recKey+maxKey+MaxBlob+4 {
		return "", nil, false
	}
	p := make([]byte, st.Size())
	if _, err := io.ReadFull(f, p); err != nil {
		return "", nil, false
	}
	return parseRecord(p)
}

// writeRecord puts a record in the place of the one before, whole or not at all.
func (s *Store) writeRecord(name, key string, data []byte) error {
	f, err := s.dir.temp()
	if err != nil {
		return err
	}
	defer f.Close()
	err = f.writeAt(encodeRecord(key, data), 0)
	if err == nil {
		err = f.sync()
	}
	if err == nil {
		err = s.dir.rename(f.name, name)
	}
	if err != nil {
		return errors.Join(err, s.dir.remove(f.name))
	}
	return nil
}

// Blob returns the record of that key as it was last set, or an error that wraps
// fs.ErrNotExist when there is none, or none that is whole.
func (s *Store) Blob(key string) ([]byte, error) {
	name := hashName(blobPrefix, key)
	s.mu.Lock()
	data, ok := s.blobs[name]
	s.mu.Unlock()
	if ok {
		return append([]byte(nil), data...), nil
	}
	if s.dir != nil {
		if k, data, ok := s.readRecord(name + recordSuffix); ok && k == key {
			return data, nil
		}
	}
	return nil, fmt.Errorf("cache record %s: %w", key, fs.ErrNotExist)
}

// SetBlob sets the record of that key, of at most MaxBlob bytes; nil removes it.
// Who reads it meanwhile, or after a crash, has the one before or this one. When
// the disk fails it is kept in memory, while there is room (else ErrFull).
func (s *Store) SetBlob(key string, data []byte) error {
	if key == "" || len(key) > maxKey || len(data) > MaxBlob {
		return fmt.Errorf("cache record %s: key of %d bytes, %d bytes of data: %w", key, len(key), len(data), os.ErrInvalid)
	}
	name := hashName(blobPrefix, key)
	if s.dir != nil && data == nil {
		if err := s.dir.remove(name + recordSuffix); err != nil {
			return err
		}
	}
	if s.diskWorks() && data != nil {
		s.makeRoom(int64(len(data)))
		err := s.writeRecord(name+recordSuffix, key, data)
		if err == nil {
			s.keepBlob(name, nil)
			return nil
		}
		s.diskFailed(err)
	}
	if !s.keepBlob(name, data) {
		return fmt.Errorf("cache record %s: %w", key, ErrFull)
	}
	return nil
}

// keepBlob keeps a record in memory, or forgets it (nil).
func (s *Store) keepBlob(name string, data []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := s.blobLen - int64(len(s.blobs[name])) + int64(len(data))
	if data == nil {
		delete(s.blobs, name)
		s.blobLen = size
		return true
	}
	if size > maxMemoryBlobs {
		return false
	}
	s.blobs[name] = append([]byte(nil), data...)
	s.blobLen = size
	return true
}
