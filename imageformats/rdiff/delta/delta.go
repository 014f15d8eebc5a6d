// Package delta gives the content that a file of an rdiff-backup repository had
// at an earlier time, read at random without writing the file out.
//
// An increment ".diff" is a librsync delta: a list of commands, each a COPY of a
// range of the next-newer version or a LITERAL that it carries itself. Compose
// follows the commands from the wanted version towards the mirror, keeping only
// what the wanted version still needs, until every byte is a range of the base
// (the mirror's file or a snapshot) or a literal. What remains is a sorted list of
// segments, in which a read is a binary search.
//
// A delta has no checksum of its own; of a compressed one, gzip's CRC and length
// are verified before Compose returns. Every delta that is needed is read once,
// whole. Whether the content is right as a whole, the SHA1Digest of the
// repository's metadata says: comparing it is the caller's, as it costs a read of
// everything.
//
// Nothing is held open or in memory without bounds: literals beyond a mebibyte
// and compressed snapshots go to a Spooler; a list of segments that grows beyond
// reason (only made-up deltas do that) is given up for a spooled version.
package delta

import (
	"context"
	"errors"
	"fmt"
	"io"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// File is an opened file. An *origin.File is one. It should be a block.Mapper, so
// that what lies plainly in it can be spliced.
type File interface {
	block.Reader
	io.Closer
}

// Source is a stored file of the repository: the mirror's file, a snapshot or a
// diff. Each yields one version of the file in question.
type Source struct {
	Name string // for messages
	Gzip bool   // stored compressed: the name ends in .gz
	Size int64  // bytes of the version that it yields, by the metadata; negative: unknown
	Key  string // changes when the stored bytes do (path and origin.Version); empty: derived bytes aren't shared

	// Open opens the stored file, for one reader, who closes it. It is called only
	// when the file is needed or about to be, from more than one goroutine; a chain
	// that must be written out opens its files again. What it returns outlives ctx.
	Open func(ctx context.Context) (File, error)
}

// Spooler keeps derived bytes: a file that is made once and found again by its key.
type Spooler interface {
	// Spool returns the file of that key. Where there is none, fill writes it; when
	// fill fails nothing is kept and fill's error is in the returned one's chain.
	// Where there is one fill isn't called. key is 64 hexadecimal digits. The caller
	// closes the file.
	Spool(ctx context.Context, key string, fill func(w io.Writer) error) (File, error)
}

// Options are what Compose needs beyond its sources.
type Options struct {
	// Spool keeps literals and decompressed snapshots too large for memory. When
	// nil, or for sources without a Key, they go to unlinked files in os.TempDir.
	Spool Spooler

	maxSegments int   // for tests; 0: the package's
	maxUnknown  int64 // largest version of unknown size to be written out; 0: by the chain's sizes
}

// A version that must be written out and whose size the metadata don't give may
// have maxUnknown bytes, or maxGrowth times the largest size that they do give:
// a few commands can ask for an exbibyte.
const (
	maxUnknown = 1 << 30
	maxGrowth  = 16
)

// withLimits sets what wasn't set. Versions written out on the way are composed
// with the same limits, so that these don't grow from one to the next.
func (o Options) withLimits(base *Source, deltas []Source) Options {
	if o.maxSegments == 0 {
		o.maxSegments = maxSegments
	}
	if o.maxUnknown == 0 {
		known := base.Size
		for i := range deltas {
			known = max(known, deltas[i].Size)
		}
		o.maxUnknown = max(maxUnknown, maxGrowth*min(known, maxSize/maxGrowth))
	}
	return o
}

// Compose returns the content that comes of applying deltas to base, deltas[0]
// first: deltas[0] is the newest, and the last is of the wanted time. Without
// deltas it is base's.
//
// Of the deltas none is read beyond the one that leaves nothing to be copied, and
// base isn't opened then. Data that contradict themselves, a checksum or a size
// are errors that match ondisk.ErrCorrupt and name the source; so is a version
// whose size isn't its Source's.
func Compose(ctx context.Context, base Source, deltas []Source, opt Options) (*Content, error) {
	opt = opt.withLimits(&base, deltas)
	content, k, err := compose(ctx, base, deltas, opt)
	if !errors.Is(err, errManySegments) {
		return content, err
	}
	// What deltas[k] yields is too fragmented to be seen through: it is written out,
	// and the older deltas, which were composed without trouble, lie over that.
	made, err := apply(ctx, base, deltas[:k], deltas[k], opt)
	if err != nil {
		return nil, err
	}
	opened := false
	over := Source{Name: deltas[k].Name + ", applied", Size: made.Size(), Open: func(context.Context) (File, error) {
		opened = true
		return made, nil
	}}
	content, err = Compose(ctx, over, deltas[k+1:], opt)
	if !opened {
		made.Close()
	}
	return content, err
}

// checkSize compares the size of the version that s yields with what is expected.
func (s *Source) checkSize(got int64) error {
	if s.Size < 0 || got == s.Size {
		return nil
	}
	return ondisk.Corruptf(format, s.Name, -1, "yields %d bytes, its metadata record %d", got, s.Size)
}

// limit is the largest size that the version may have.
func (s *Source) limit() int64 {
	if s.Size < 0 {
		return maxSize
	}
	return min(s.Size, maxSize)
}

// open opens the stored file.
func (s *Source) open(ctx context.Context) (File, error) {
	f, err := s.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", format, s.Name, err)
	}
	return f, nil
}

// format names the format in errors.
const format = "rdiff"
