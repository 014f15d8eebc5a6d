// Command ebs-bench measures reading Amazon EBS snapshots through the cache, from
// the fake of internal/ebsfake at 25 ms a request, 64 MiB/s a connection and
// 500 MiB/s in all. What was fetched is told by the fake's own counters. It needs
// root, to make the disks and to mount.
//
//	go run ./testdata/ebs-bench -yester bin/yester [-rounds 3] [-only hydration]
//
// The fake runs in this process and on the same CPUs. Every cache begins empty,
// unless a row says otherwise. Content is compared with what was written to the
// disks, before the first round and in every copy.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"yester/cache"
	"yester/internal/ebsfake"
	"yester/restorepoint"
	"yester/testdata/versus"
)

// What the fake stands for.
const (
	latency       = 25 * time.Millisecond
	connBandwidth = 64 << 20
	allBandwidth  = 500 << 20
	throttledRate = 200 // requests a second
)

// snapshot is one of the fake's.
type snapshot struct {
	id, volume, at string
	file           string
}

var (
	day1 = snapshot{"snap-01", "vol-01", "2026-11-18T02:30:00Z", "day1.raw"}
	day2 = snapshot{"snap-02", "vol-01", "2026-11-19T02:30:00Z", "day2.raw"}
	inVG = snapshot{"snap-03", "vol-02", "2026-11-20T02:30:00Z", "lvm.raw"}
	huge = snapshot{"snap-04", "vol-03", "2026-11-21T02:30:00Z", ""}
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == hugeMode {
		if err := openHuge(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "ebs-bench:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{table: versus.Table{Out: os.Stdout}}
	flag.StringVar(&b.yester, "yester", "bin/yester", "the yester binary")
	flag.StringVar(&b.work, "dir", filepath.Join(os.TempDir(), "yester-ebs-bench"), "folder for the disks (7 GiB) and caches, kept for the next run")
	flag.IntVar(&b.table.Rounds, "rounds", 3, "measurements of each kind")
	flag.StringVar(&b.table.Only, "only", "", "measure only what has this in its name")
	flag.Parse()
	err := b.run()
	b.stopAll()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ebs-bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	table        versus.Table
	yester, work string
	fake         *ebsfake.Server
	url          string
}

func (b *bench) path(name string) string { return filepath.Join(b.work, name) }

// asAWS is how the fake behaves where a row doesn't say otherwise.
func asAWS() ebsfake.Settings {
	return ebsfake.Settings{Latency: ebsfake.Duration(latency), ConnBandwidth: connBandwidth, AllBandwidth: allBandwidth}
}

func (b *bench) run() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to mount")
	}
	var err error
	if b.yester, err = filepath.Abs(b.yester); err != nil {
		return err
	}
	b.stopAll()
	if err := b.prepare(); err != nil {
		return err
	}
	if err := b.serve(); err != nil {
		return err
	}
	defer b.fake.Close()
	if err := b.verify(); err != nil {
		return err
	}
	b.table.Head("beside it")
	for _, rows := range []func() error{
		func() error { return b.firstLook("ext4", day1) }, func() error { return b.firstLook("ext4 on LVM", inVG) },
		b.nextDay, b.hotFirst, b.hydration, b.underHydration, b.copyLarge, b.throttled, b.hugeMap,
	} {
		if err := rows(); err != nil {
			return err
		}
		b.fake.SetSettings(asAWS())
	}
	return nil
}

// serve starts the fake, and makes it the AWS of this process and its children.
func (b *bench) serve() error {
	b.fake = ebsfake.New(ebsfake.Options{})
	for _, s := range []snapshot{day1, day2, inVG, huge} {
		at, err := time.Parse(time.RFC3339, s.at)
		if err != nil {
			return err
		}
		snap := ebsfake.Snapshot{ID: s.id, VolumeID: s.volume, StartTime: at}
		if s.file == "" {
			snap.Image = &ebsfake.Generated{Blocks: hugeBlocks, VersionOf: func(int64) uint64 { return 1 }}
		} else if snap.Image, err = ebsfake.OpenFile(b.path(s.file)); err != nil {
			return err
		}
		if err := b.fake.Add(snap); err != nil {
			return err
		}
	}
	var err error
	if b.url, err = b.fake.Start("127.0.0.1:0"); err != nil {
		return err
	}
	for k, v := range map[string]string{
		"AWS_ENDPOINT_URL_EBS": b.url, "AWS_ENDPOINT_URL_EC2": b.url, "AWS_REGION": "us-east-1",
		"AWS_ACCESS_KEY_ID": ebsfake.TestCredentials.AccessKey, "AWS_SECRET_ACCESS_KEY": ebsfake.TestCredentials.Secret,
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	b.fake.SetSettings(asAWS())
	return nil
}

// opened is a snapshot's disk in this process, through a cache.
type opened struct {
	image
	cache *cache.Cache
	src   *restorepoint.Source
	point *restorepoint.Opened
}

// image is what a disk read through the cache can do.
type image interface {
	ReadAt(p []byte, off int64) (int, error)
	Size() int64
	Hydrate(ctx context.Context, opt cache.HydrateOptions) error
	Stats() cache.ObjectStats
}

// open opens a snapshot, as a point of its volume, with the cache in dir, which is emptied if fresh.
func open(s snapshot, dir string, fresh bool) (*opened, error) {
	if fresh {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	ctx := context.Background()
	c, err := cache.Open(cache.Config{Dir: dir})
	if err != nil {
		return nil, err
	}
	fail := func(err error, more ...func() error) (*opened, error) {
		for _, f := range more {
			err = errors.Join(err, f())
		}
		return nil, errors.Join(err, c.Close())
	}
	src, err := restorepoint.Open("ebs://"+s.volume, restorepoint.Options{Cache: func() (*cache.Cache, error) { return c, nil }})
	if err != nil {
		return fail(err)
	}
	list, err := src.List(ctx)
	if err != nil {
		return fail(err, src.Close)
	}
	i := slices.IndexFunc(list.Points, func(p restorepoint.Point) bool { return p.Disks[0].Info.ID == s.id })
	if i < 0 {
		return fail(fmt.Errorf("%s is no point of %s", s.id, s.volume), src.Close)
	}
	point, err := src.OpenPoint(ctx, list.Points[i])
	if err != nil {
		return fail(err, src.Close)
	}
	img, ok := point.Disks[0].Image.(image)
	if !ok {
		point.Close()
		return fail(fmt.Errorf("%s: a %T is not read through the cache", s.id, point.Disks[0].Image), src.Close)
	}
	return &opened{img, c, src, point}, nil
}

func (o *opened) Close() error {
	o.point.Close()
	return errors.Join(o.src.Close(), o.cache.Close())
}

// blocks is how many blocks the fake has sent.
func (b *bench) blocks() int64 { return b.fake.Counts()["GetSnapshotBlock"] }

// lists is how many of its other answers were asked for.
func (b *bench) lists() int64 {
	c := b.fake.Counts()
	return c["ListSnapshotBlocks"] + c["ListChangedBlocks"] + c["DescribeSnapshots"]
}

// stopAll takes down what a failed run has left.
func (b *bench) stopAll() {
	if _, err := os.Stat(b.work); err != nil {
		return
	}
	_ = versus.Shell(b.work, "if mountpoint -q mnt; then "+b.yester+" umount mnt || umount -l mnt; fi; if mountpoint -q loop; then umount loop; fi; rm -rf cache*")
}
