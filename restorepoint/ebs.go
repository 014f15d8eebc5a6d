package restorepoint

import (
	"context"
	"path"
	"strings"
	"time"

	"yester/cache"
	"yester/imageformats"
	"yester/imageformats/ebs"
)

// EBSOptions say what Amazon EBS snapshots may cost.
type EBSOptions struct {
	// Rates are what AWS asks for; zero: ebs.DefaultRates.
	Rates ebs.Rates
	// MaxCost in dollars ends all reading of what isn't cached, with an error, once
	// it has cost that much; 0: no limit.
	MaxCost float64
}

// LayoutEBS is the Layout of Amazon EBS snapshots.
const LayoutEBS = "ebs"

// snapshotSource is a source whose points are snapshots in Amazon EBS.
type snapshotSource struct {
	client *ebs.Client
	cache  *cache.Cache
	sched  *cache.Scheduler
	query  ebs.Query
	rates  ebs.Rates
	window time.Duration // how far apart the snapshots of one point may begin
}

// connectEBS makes the client. Nothing is asked of AWS yet.
func (s *Source) connectEBS(ctx context.Context, query ebs.Query) error {
	c, err := s.opt.Cache()
	if err != nil {
		return err
	}
	n := &snapshotSource{
		cache: c, query: query, rates: s.opt.EBS.Rates, window: s.opt.GroupWindow,
		sched: cache.NewScheduler(cache.Limits{
			Interactive: ebs.InteractiveInFlight, Bulk: ebs.BulkInFlight, PerSecond: ebs.RequestsPerSecond,
		}, nil), // the client tries again by itself what is throttled
	}
	if n.window == 0 {
		n.window = DefaultGroupWindow
	}
	if n.rates == (ebs.Rates{}) {
		n.rates = ebs.DefaultRates
	}
	n.client, err = ebs.New(ctx, ebs.Config{
		Region: query.Region, Profile: query.Profile, Rates: s.opt.EBS.Rates, MaxCost: s.opt.EBS.MaxCost,
		Blobs: c.Blobs(), Logger: s.opt.Logger, Throttled: func(string) { n.sched.Throttled() },
	})
	if err != nil {
		return err
	}
	s.snapshots = n
	return nil
}

func (n *snapshotSource) close() error { return n.client.Close() }

// list lists the snapshots as points.
func (n *snapshotSource) list(ctx context.Context) (*Catalogue, error) {
	snapshots, err := n.client.Snapshots(ctx, n.query)
	if err != nil {
		return nil, err
	}
	machine := n.machine(snapshots)
	var points []Point
	for _, ep := range ebs.Points(snapshots, n.window) {
		p := Point{Machine: machine, Time: ep.Time.UTC(), TimeFrom: FromCatalogue, Kind: KindDisks, Layout: LayoutEBS}
		var keys []string
		for _, snap := range ep.Snapshots {
			p.Disks = append(p.Disks, n.disk(snap))
			keys = append(keys, n.client.Key(snap.ID), snap.State)
			if err := snap.Problem(); err != nil && p.Problem == "" {
				p.Problem, p.problem = err.Error(), err
			}
		}
		p.key = strings.Join(keys, " ") + p.Problem
		points = append(points, p)
	}
	number(points)
	return &Catalogue{Points: points}, nil
}

// machine names what the snapshots are of: what was asked for by name, or the Name
// tag that they all have, or else what was asked for.
func (n *snapshotSource) machine(snapshots []ebs.Snapshot) string {
	name := ""
	for i, s := range snapshots {
		if t := s.Tags["Name"]; i == 0 || t == name {
			name = t
		} else {
			name = ""
			break
		}
	}
	switch {
	case name != "":
		return name
	case n.query.Instance != "":
		return n.query.Instance
	case n.query.Volume != "":
		return n.query.Volume
	case n.query.Snapshot != "" && len(snapshots) > 0:
		return snapshots[0].Lineage()
	}
	return "ebs"
}

func (n *snapshotSource) disk(snap ebs.Snapshot) Disk {
	name := snap.Lineage()
	if snap.Device != "" {
		name = path.Base(snap.Device)
	}
	return Disk{
		Name: name, Files: []string{snap.ID}, Bytes: snap.FullSize, snap: &snap,
		Info: imageformats.Info{
			Format: "ebs", Variant: "snapshot", Size: snap.Size, BlockSize: ebs.BlockSize, SectorSize: 512,
			ID: snap.ID, Created: snap.Start,
		},
	}
}

// snapshotImage is an opened snapshot, seen through the cache.
type snapshotImage struct {
	*cache.Reader
	disk *ebs.Disk
}

// open opens a snapshot. Nothing is fetched yet.
func (n *snapshotSource) open(snap *ebs.Snapshot) (*snapshotImage, error) {
	if err := snap.Problem(); err != nil {
		return nil, err
	}
	d, err := n.client.Open(*snap)
	if err != nil {
		return nil, err
	}
	r, err := n.cache.Open(cache.Object{
		Key: d.Key(), Lineage: n.client.Key(snap.Lineage()), Size: d.Size(), BlockSize: ebs.BlockSize,
		Fetch: d.Fetch, Zero: d.Zero, Next: d.Next, Home: d.Home, HomeSize: d.HomeSize,
	}, n.sched)
	if err != nil {
		d.Close()
		return nil, err
	}
	return &snapshotImage{r, d}, nil
}

// Close closes the image.
func (i *snapshotImage) Close() error {
	err := i.Reader.Close()
	if cerr := i.disk.Close(); err == nil {
		err = cerr
	}
	return err
}

// Cost is what a source has cost since it was opened.
type Cost struct {
	Blocks  int64   `json:"blocks"`
	Bytes   int64   `json:"bytes"`
	Lists   int64   `json:"lists"`
	Retried int64   `json:"retried"` // requests of both kinds that had to be repeated
	Dollars float64 `json:"dollars"` // by the rates that are set
	Text    string  `json:"text"`
}

func costOf(c ebs.Cost) *Cost {
	return &Cost{
		Blocks: c.Blocks, Bytes: c.Bytes(), Lists: c.Lists, Retried: c.RetriedBlocks + c.RetriedLists,
		Dollars: c.Dollars(), Text: c.String(),
	}
}

// Cost returns what the source has cost so far; nil when it is of no kind that
// costs money.
func (s *Source) Cost() *Cost {
	if s.snapshots == nil {
		return nil
	}
	return costOf(s.snapshots.client.Cost())
}

// MaxCost returns what reading all of the disk would cost at most; nil when it is
// of no kind that costs money.
func (d *OpenedDisk) MaxCost() *Cost {
	if i, ok := d.Image.(*snapshotImage); ok {
		return costOf(i.disk.MaxCost())
	}
	return nil
}
