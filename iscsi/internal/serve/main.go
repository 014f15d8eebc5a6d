// Serve shows one raw file as an iSCSI target, for tests and benchmarks: it is
// what the library's own tests, the VM in testdata/vm and testdata/iscsi-bench
// log in to. It prints the address it listens at on its standard output.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" // -pprof
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"yester/internal/block"
	"yester/iscsi"
)

// raw is a file as a block.Reader; with a delay it stands for a slow backend,
// which has no place in a file.
type raw struct {
	f     *os.File
	size  int64
	delay time.Duration
	plain bool // doesn't tell where its bytes lie
}

func (r *raw) Size() int64 { return r.size }

func (r *raw) ReadAt(p []byte, off int64) (int, error) {
	if r.delay > 0 {
		time.Sleep(r.delay)
	}
	return r.f.ReadAt(p, off)
}

func (r *raw) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	if r.delay > 0 || r.plain {
		return block.Extent{Len: n}, nil
	}
	return block.Extent{Len: n, File: r.f, Off: off}, nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	iqn := flag.String("target", "iqn.2026-11.test:t", "target name")
	overlay := flag.Int64("overlay", 0, "bytes of scratch per session")
	dir := flag.String("overlay-dir", "", "where the scratch lies")
	user := flag.String("user", "", "CHAP name:secret")
	mutual := flag.String("mutual", "", "mutual CHAP name:secret")
	delay := flag.Duration("delay", 0, "per read")
	plain := flag.Bool("plain", false, "read through a Reader without locations")
	block := flag.Int("block", 512, "logical block size")
	physical := flag.Int("physical", 0, "physical block size")
	insecure := flag.Bool("insecure", false, "listen anywhere without CHAP")
	profile := flag.String("pprof", "", "address of net/http/pprof")
	verbose := flag.Bool("v", false, "log everything")
	flag.Parse()
	if flag.NArg() == 0 {
		return errors.New("usage: serve [flags] FILE…")
	}
	o := iscsi.Options{Insecure: *insecure}
	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelDebug
	}
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if *user != "" {
		u := iscsi.User{}
		u.Name, u.Secret, _ = strings.Cut(*user, ":")
		u.MutualName, u.MutualSecret, _ = strings.Cut(*mutual, ":")
		o.Auth.Users = []iscsi.User{u}
	}
	srv := iscsi.New(o)
	var luns []iscsi.LUN
	for i, name := range flag.Args() {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		l := iscsi.LUN{ID: uint16(i + 1), Reader: &raw{f, st.Size(), *delay, *plain}, BlockSize: *block, PhysicalBlockSize: *physical}
		if *overlay > 0 {
			l.Overlay = &iscsi.Overlay{Dir: *dir, Size: *overlay}
		}
		luns = append(luns, l)
	}
	if err := srv.AddTarget(*iqn, luns...); err != nil {
		return err
	}
	if *profile != "" {
		go http.ListenAndServe(*profile, nil)
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		srv.Shutdown(end)
	}()
	if err := srv.Serve(l); !errors.Is(err, iscsi.ErrClosed) {
		return err
	}
	return nil
}
