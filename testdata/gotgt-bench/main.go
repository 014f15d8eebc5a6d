// Command gotgt-bench serves one file with github.com/gostor/gotgt v0.2.2, as a
// column of the benchmark and as the means by which
// docs/decisions/0005-iscsi-target.md was checked. It is a module of its own: the
// product doesn't depend on gotgt.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/gostor/gotgt/pkg/api"
	"github.com/gostor/gotgt/pkg/config"
	_ "github.com/gostor/gotgt/pkg/port/iscsit"
	"github.com/gostor/gotgt/pkg/scsi"
	_ "github.com/gostor/gotgt/pkg/scsi/backingstore" // its null store is LUN 0
	"github.com/sirupsen/logrus"
)

var (
	delay = flag.Duration("delay", 0, "per read")
	bad   = flag.Int64("bad", -1, "reads at or after this byte fail")
)

// store is a read-only file that can be slow and can fail.
type store struct {
	scsi.BaseBackingStore
	f *os.File
}

func (s *store) Open(_ *api.SCSILu, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	s.f, s.DataSize = f, uint64(st.Size())
	return nil
}
func (s *store) Close(*api.SCSILu) error        { return s.f.Close() }
func (s *store) Init(*api.SCSILu, string) error { return nil }
func (s *store) Exit(*api.SCSILu) error         { return nil }
func (s *store) Size(*api.SCSILu) uint64        { return s.DataSize }
func (s *store) Read(off, n int64) ([]byte, error) {
	time.Sleep(*delay)
	if *bad >= 0 && off+n > *bad {
		return nil, errors.New("no such sector")
	}
	p := make([]byte, n)
	_, err := s.f.ReadAt(p, off)
	return p, err
}
func (s *store) Write([]byte, int64) error              { return errors.ErrUnsupported }
func (s *store) DataSync(int64, int64) error            { return nil }
func (s *store) DataAdvise(int64, int64, uint32) error  { return nil }
func (s *store) Unmap([]api.UnmapBlockDescriptor) error { return nil }

func main() {
	port := flag.Int("port", 0, "where to listen on 127.0.0.1")
	flag.Parse()
	if flag.NArg() != 1 || *port == 0 {
		fmt.Fprintln(os.Stderr, "usage: gotgt-bench -port N FILE")
		os.Exit(2)
	}
	logrus.SetLevel(logrus.ErrorLevel)
	scsi.RegisterBackingStore("bench", func() (api.BackingStore, error) {
		return &store{BaseBackingStore: scsi.BaseBackingStore{Name: "bench"}}, nil
	})
	const name = "iqn.2026-11.test:t"
	c := &config.Config{
		Storages:     []config.BackendStorage{{DeviceID: 1000, Path: "bench:" + flag.Arg(0), Online: true, BlockShift: 9}},
		ISCSIPortals: []config.ISCSIPortalInfo{{ID: 0, Portal: "127.0.0.1:" + strconv.Itoa(*port)}},
		ISCSITargets: map[string]config.ISCSITarget{name: {TPGTs: map[string][]uint64{"1": {0}}, LUNs: map[string]uint64{"1": 1000}}},
	}
	if err := scsi.InitSCSILUMap(c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	d, err := scsi.NewTargetDriver("iscsi", scsi.NewSCSITargetService())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := d.NewTarget(name, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("127.0.0.1:%d\n", *port)
	d.Run(*port)
}
