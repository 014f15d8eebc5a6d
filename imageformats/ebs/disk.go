package ebs

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsebs "github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"golang.org/x/sync/singleflight"

	"yester/internal/ondisk"
)

// Disk is a snapshot as a row of blocks. It is safe for parallel use.
//
// Which blocks have been written is learnt from the list of the region that is
// touched first, and of the rest in the background, slowly. A list or a fetch
// that others wait for as well goes on when one of them leaves.
type Disk struct {
	c      *Client
	snap   Snapshot
	blocks int64
	node   *node
	meter  meter

	written *rangeMap
	tokens  *tokens
	relists singleflight.Group
	stale   sync.Map    // regions whose tokens in a blob are no good
	resting atomic.Bool // the rest is being listed
	saved   atomic.Int64
}

// Open returns the disk of a snapshot, without a request. Its error is
// Snapshot.Problem's.
func (c *Client) Open(s Snapshot) (*Disk, error) {
	if err := s.Problem(); err != nil {
		return nil, err
	}
	d := &Disk{c: c, snap: s, blocks: s.Size / BlockSize, tokens: newTokens()}
	d.written = newRangeMap(d.blocks, d.list, d.tokens.learn)
	if p, ok := c.blob(d.mapKey()); ok {
		if err := d.written.decode(p); err != nil {
			c.log.Warn("ebs: a stored block map is damaged and is listed again", "snapshot", s.ID)
		}
	}
	d.node = c.join(&s)
	return d, nil
}

// Snapshot returns what EC2 said of it.
func (d *Disk) Snapshot() Snapshot { return d.snap }

// Size returns the disk's size in bytes, a multiple of BlockSize.
func (d *Disk) Size() int64 { return d.snap.Size }

// Blocks returns the number of blocks, written or not.
func (d *Disk) Blocks() int64 { return d.blocks }

// Key names the snapshot among all that a cache may hold.
func (d *Disk) Key() string { return d.c.Key(d.snap.ID) }

// Cost returns what has been asked of AWS for this disk; lists that compare it
// with another are in the Client's alone.
func (d *Disk) Cost() Cost { return d.meter.cost(d.c.cfg.Rates) }

// MaxCost returns what the whole disk would cost: exactly, once all of it is
// listed, and at most before.
func (d *Disk) MaxCost() Cost {
	max := d.snap.MaxCost(d.c.cfg.Rates)
	if n, whole := d.written.count(); whole {
		max.Blocks = n
	}
	return max
}

// Close keeps what has been learnt in the Client's Blobs.
func (d *Disk) Close() error {
	d.save()
	return nil
}

func (d *Disk) mapKey() string { return d.Key() + "/map" }

func (d *Disk) tokensKey(region int64) string {
	return d.Key() + "/tokens/" + strconv.FormatInt(region, 10)
}

func (d *Disk) save() {
	if d.c.cfg.Blobs == nil {
		return
	}
	if p, ok := d.written.encode(); ok {
		d.c.setBlob(d.mapKey(), p)
	}
}

// saveEvery bounds how much a crash forgets, and how often a growing map is written.
const saveEvery = 5 * time.Second

func (d *Disk) check(n int64) error {
	if n < 0 || n >= d.blocks {
		return fmt.Errorf("ebs: %s: block %d of %d: %w", d.snap.ID, n, d.blocks, io.EOF)
	}
	return nil
}

// Zero reports whether block n was never written: it reads as zeros, and fetching
// it costs nothing. It may list.
func (d *Disk) Zero(ctx context.Context, n int64) (bool, error) {
	if err := d.check(n); err != nil {
		return false, err
	}
	if set, known := d.written.has(n); known {
		return !set, nil
	}
	// Whoever asks for zeros will ask for the home of what isn't: compare meanwhile.
	d.c.prepare(d.node, n)
	if err := d.written.ensure(ctx, n, false, d.listing); err != nil {
		return false, err
	}
	set, _ := d.written.has(n)
	return !set, nil
}

// Next returns the first block from from on that was written; ok is false when
// there is none. It may list.
func (d *Disk) Next(ctx context.Context, from int64) (n int64, ok bool, err error) {
	n = max(from, 0)
	for n < d.blocks {
		var set bool
		if n, set = d.written.next(n); set {
			return n, true, nil
		}
		if n >= d.blocks {
			break
		}
		if err := d.written.ensure(ctx, n, false, d.listing); err != nil {
			return 0, false, err
		}
	}
	return d.blocks, false, ctx.Err()
}

// Fetch fills p, which must be BlockSize long, with block n, verified by length
// and SHA-256. Blocks never written are zeros, without a request. Each call
// fetches anew: keeping blocks is the caller's business, under Home's key.
func (d *Disk) Fetch(ctx context.Context, n int64, p []byte) error {
	if len(p) != BlockSize {
		return fmt.Errorf("ebs: fetch of block %d into %d bytes: %w", n, len(p), io.ErrShortBuffer)
	}
	zero, err := d.Zero(ctx, n)
	if err != nil {
		return err
	}
	if zero {
		clear(p)
		return nil
	}
	token, err := d.token(ctx, n)
	if err != nil {
		return err
	}
	return d.c.send(ctx, request{
		snapshot: d.snap.ID, op: "ebs:GetSnapshotBlock", block: true, meters: []*meter{&d.c.meter, &d.meter},
		do: func(ctx context.Context, alive, answered func()) error {
			return d.get(ctx, n, token, p, alive, answered)
		},
		renew: func(ctx context.Context) error {
			d.stale.Store(n/regionBlocks, true)
			d.tokens.refuse(n, token)
			token, err = d.token(ctx, n)
			return err
		},
	})
}

// get makes one request for a block and verifies the answer.
func (d *Disk) get(ctx context.Context, n int64, token string, p []byte, alive, answered func()) error {
	out, err := d.c.ebs.GetSnapshotBlock(ctx, &awsebs.GetSnapshotBlockInput{
		SnapshotId: aws.String(d.snap.ID), BlockIndex: aws.Int32(int32(n)), BlockToken: aws.String(token),
	})
	if err != nil {
		return err
	}
	defer out.BlockData.Close()
	answered()
	alive()
	bad := func(msg string, args ...any) error {
		return &answerError{ondisk.Corruptf("ebs", fmt.Sprintf("block %d", n), n*BlockSize, msg, args...)}
	}
	if length := aws.ToInt32(out.DataLength); length != BlockSize {
		return bad("x-amz-Data-Length is %d, want %d", length, BlockSize)
	}
	if out.ChecksumAlgorithm != types.ChecksumAlgorithmChecksumAlgorithmSha256 {
		return bad("x-amz-Checksum-Algorithm is %.32q, want SHA256", string(out.ChecksumAlgorithm))
	}
	want, err := base64.StdEncoding.DecodeString(aws.ToString(out.Checksum))
	if err != nil || len(want) != sha256.Size {
		return bad("x-amz-Checksum is %.64q, no SHA-256 in base64", aws.ToString(out.Checksum))
	}
	got, err := io.ReadFull(&aliveReader{out.BlockData, alive}, p)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return bad("the answer ends after %d of %d bytes: %v", got, BlockSize, err)
	}
	// The end, too, is read: the connection can't be used again otherwise.
	var more [1]byte
	if extra, err := io.ReadFull(out.BlockData, more[:]); extra != 0 || !errors.Is(err, io.EOF) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return bad("the answer goes on after %d bytes", BlockSize)
	}
	if sum := sha256.Sum256(p); string(sum[:]) != string(want) {
		return bad("SHA-256 %s, want %s", base64.StdEncoding.EncodeToString(sum[:]), aws.ToString(out.Checksum))
	}
	return nil
}

// aliveReader tells of every piece that arrives.
type aliveReader struct {
	r     io.Reader
	alive func()
}

func (a *aliveReader) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if n > 0 {
		a.alive()
	}
	return n, err
}

// token returns block n's token: from memory, from a blob, or listed again. The
// block is known to be written.
func (d *Disk) token(ctx context.Context, n int64) (string, error) {
	region := n / regionBlocks
	stored := d.c.cfg.Blobs != nil
	for try := 0; ; try++ {
		token, save := d.tokens.get(n)
		if token != "" {
			if save && d.c.cfg.Blobs != nil {
				d.c.goTracked(func() {
					if p, ok := d.tokens.encode(region); ok {
						d.c.setBlob(d.tokensKey(region), p)
						d.stale.Delete(region)
					}
				})
			}
			return token, nil
		}
		if try == 2 {
			return "", ondisk.Corruptf("ebs", fmt.Sprintf("block %d of %s", n, d.snap.ID), -1, "was listed once, and isn't any more")
		}
		if _, stale := d.stale.Load(region); stored && !stale {
			stored = false
			if p, ok := d.c.blob(d.tokensKey(region)); ok && d.tokens.decode(region, p) == nil {
				try--
				continue
			}
		}
		listed := d.relists.DoChan(strconv.FormatInt(region, 10), func() (any, error) {
			// A map of its own: what is known of the snapshot stays known.
			again := newRangeMap(d.blocks, d.list, d.tokens.learn)
			return nil, again.fill(d.c.ctx, span{region * regionBlocks, min((region+1)*regionBlocks, d.blocks)})
		})
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case r := <-listed:
			if r.Err != nil {
				return "", r.Err
			}
		}
	}
}

// listing runs a listing that someone waits for; afterwards the rest is listed
// in the background.
func (d *Disk) listing(list func(context.Context)) {
	d.c.goTracked(func() {
		list(d.c.ctx)
		if last := d.saved.Load(); time.Now().UnixNano()-last > int64(saveEvery) && d.saved.CompareAndSwap(last, time.Now().UnixNano()) {
			d.save()
		}
		if d.resting.CompareAndSwap(false, true) {
			d.c.goTracked(d.rest)
		}
	})
}

// rest lists what isn't known yet, one page at a time for all disks of the
// Client. An error ends it until the next listing that someone waits for.
func (d *Disk) rest() {
	defer d.resting.Store(false)
	wait := func(ctx context.Context) error { return d.c.pace.wait(ctx) }
	for {
		gap, ok := d.written.gap(0)
		if !ok {
			d.save()
			return
		}
		if err := d.written.run(d.c.ctx, gap, wait); err != nil {
			if d.c.ctx.Err() == nil {
				d.c.log.Info("ebs: the rest of the block map isn't listed for now", "snapshot", d.snap.ID, "err", err)
			}
			d.save()
			return
		}
	}
}

// list is the lister of written blocks.
func (d *Disk) list(ctx context.Context, from int64, token string) (page, error) {
	in := &awsebs.ListSnapshotBlocksInput{SnapshotId: aws.String(d.snap.ID), MaxResults: aws.Int32(maxResults)}
	if token != "" {
		in.NextToken = aws.String(token)
	} else {
		in.StartingBlockIndex = aws.Int32(int32(from))
	}
	var p page
	err := d.c.listCall(ctx, "ebs:ListSnapshotBlocks", d.snap.ID, []*meter{&d.c.meter, &d.meter}, func(ctx context.Context) error {
		out, err := d.c.ebs.ListSnapshotBlocks(ctx, in)
		if err != nil {
			return err
		}
		p = page{next: aws.ToString(out.NextToken), blocks: make([]int64, 0, len(out.Blocks)), tokens: make([]string, 0, len(out.Blocks))}
		if t := aws.ToTime(out.ExpiryTime); !t.IsZero() {
			p.expiry = t.Unix()
		}
		for _, b := range out.Blocks {
			token := aws.ToString(b.BlockToken)
			if b.BlockIndex == nil || token == "" || len(token) > maxToken {
				return &answerError{ondisk.Corruptf("ebs", "block list of "+d.snap.ID, -1, "a block without index or token")}
			}
			p.blocks = append(p.blocks, int64(*b.BlockIndex))
			p.tokens = append(p.tokens, token)
		}
		return checkList(d.snap.ID, d.snap.Size, out.VolumeSize, out.BlockSize)
	})
	return p, err
}

// checkList compares what a list says of the volume with what EC2 said.
func checkList(id string, size int64, volumeSize *int64, blockSize *int32) error {
	if got := aws.ToInt32(blockSize); got != BlockSize {
		return ondisk.Unsupportedf("ebs", "block list of "+id, -1, "blocks of %d bytes, want %d", got, BlockSize)
	}
	if got := aws.ToInt64(volumeSize); got != size>>30 {
		return ondisk.Corruptf("ebs", "block list of "+id, -1, "a volume of %d GiB, EC2 said %d GiB", got, size>>30)
	}
	return nil
}

// listCall makes a list call, of which only so many run at a time.
func (c *Client) listCall(ctx context.Context, op, snapshot string, meters []*meter, call func(context.Context) error) error {
	select {
	case c.lists <- struct{}{}:
		defer func() { <-c.lists }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.send(ctx, request{
		snapshot: snapshot, op: op, meters: meters,
		do: func(ctx context.Context, _, answered func()) error {
			err := call(ctx)
			if err == nil {
				answered()
			}
			return err
		},
	})
}
