package ebsfake_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"

	"yester/internal/ebsfake"
)

// discard is a client that has all the time of the machine's other core.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkBlock is what the server itself can send, signature checked.
func BenchmarkBlock(b *testing.B) {
	s := ebsfake.New(ebsfake.Options{})
	defer s.Close()
	img := &ebsfake.Generated{Blocks: 64, VersionOf: func(int64) uint64 { return 1 }}
	if err := s.Add(ebsfake.Snapshot{ID: "snap-01", VolumeID: "vol-01", Image: img}); err != nil {
		b.Fatal(err)
	}
	// One signed request is caught on its way and answered again and again.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var last *http.Request
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last = r.Clone(context.Background())
		last.Body = nil
		s.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	e, _ := clients("http://" + l.Addr().String())
	ctx := context.Background()
	page, err := e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01")})
	if err != nil {
		b.Fatal(err)
	}
	got, err := e.GetSnapshotBlock(ctx, &ebs.GetSnapshotBlockInput{SnapshotId: aws.String("snap-01"), BlockIndex: aws.Int32(0), BlockToken: page.Blocks[0].BlockToken})
	if err != nil {
		b.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, got.BlockData)
	got.BlockData.Close()
	b.SetBytes(ebsfake.BlockSize)
	for b.Loop() {
		s.ServeHTTP(&discard{http.Header{}}, last)
	}
	if n := s.Counts()["Blocks"]; n < int64(b.N) {
		b.Fatalf("%d blocks of %d", n, b.N)
	}
}
