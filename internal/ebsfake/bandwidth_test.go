package ebsfake_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"

	"yester/internal/ebsfake"
)

// TestBandwidth fetches blocks of a file again and again, over one connection and
// over several: the bytes are right each time, and never come faster than allowed.
func TestBandwidth(t *testing.T) {
	blocks := map[int64]byte{}
	for n := range int64(8) {
		blocks[n] = 4 // whole
	}
	const size = 8*ebsfake.BlockSize - 512 // the last one isn't, in the file
	img := disk(t, t.TempDir(), "full", size, blocks)
	for name, c := range map[string]struct {
		set     ebsfake.Settings
		clients int
		rate    int64 // bytes/s of all
	}{
		"one connection":      {ebsfake.Settings{ConnBandwidth: 16 << 20}, 1, 16 << 20},
		"several":             {ebsfake.Settings{ConnBandwidth: 16 << 20}, 3, 48 << 20},
		"several, one limit":  {ebsfake.Settings{AllBandwidth: 40 << 20}, 3, 40 << 20},
		"several, two limits": {ebsfake.Settings{ConnBandwidth: 32 << 20, AllBandwidth: 48 << 20}, 3, 48 << 20},
		"slow":                {ebsfake.Settings{ConnBandwidth: 8 << 20}, 1, 8 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s, url := start(t, ebsfake.Options{Settings: c.set})
			add(t, s, ebsfake.Snapshot{ID: "snap-01", VolumeID: "vol-01", Image: img})
			ctx := context.Background()
			e, _ := clients(url)
			list, err := e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01")})
			if err != nil || len(list.Blocks) != 8 {
				t.Fatalf("%d blocks, %v", len(list.Blocks), err)
			}
			const rounds = 2
			errs := make([]error, c.clients)
			began := time.Now()
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() {
					e, _ := clients(url)
					for range rounds {
						for _, b := range list.Blocks {
							errs[i] = errors.Join(errs[i], fetch(ctx, e, b.BlockIndex, b.BlockToken))
						}
					}
				})
			}
			wg.Wait()
			took := time.Since(began)
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			sent := int64(rounds*8*c.clients) * ebsfake.BlockSize
			// What passes in 5 ms may be made up for once a connection has been idle, which
			// it is between two blocks.
			least := time.Duration(float64(sent)/float64(c.rate)*float64(time.Second)) - rounds*8*5*time.Millisecond
			t.Logf("%.1f MiB/s of %d", float64(sent)/took.Seconds()/(1<<20), c.rate>>20)
			if took < least {
				t.Errorf("%d bytes in %v, which take %v at least", sent, took, least)
			}
		})
	}
}

// fetch gets a block of fours and compares it with its checksum and with those.
func fetch(ctx context.Context, e *ebs.Client, n *int32, token *string) error {
	out, err := e.GetSnapshotBlock(ctx, &ebs.GetSnapshotBlockInput{SnapshotId: aws.String("snap-01"), BlockIndex: n, BlockToken: token})
	if err != nil {
		return err
	}
	defer out.BlockData.Close()
	p, err := io.ReadAll(out.BlockData)
	if err != nil {
		return err
	}
	want := bytes.Repeat([]byte{4}, ebsfake.BlockSize)
	if *n == 7 {
		clear(want[ebsfake.BlockSize-512:])
	}
	sum := sha256.Sum256(p)
	if !bytes.Equal(p, want) || base64.StdEncoding.EncodeToString(sum[:]) != *out.Checksum {
		return fmt.Errorf("block %d: wrong bytes, or checksum %s", *n, *out.Checksum)
	}
	return nil
}
