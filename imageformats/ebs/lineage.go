package ebs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsebs "github.com/aws/aws-sdk-go-v2/service/ebs"
)

// lineage knows which snapshots show the same disk, and where they agree.
//
// When a region of a snapshot is looked at for the first time, the snapshot is
// compared there with its two neighbours in time among those whose region has been
// looked at before. A block that is unchanged towards a neighbour has that
// neighbour's home; a block that isn't has its own. So all snapshots with one
// content of a block in a row have one home, in whatever order they are looked at:
// put between two that agree, a snapshot agrees with both. The neighbours, once
// chosen, are kept; those chosen earlier never depend on those chosen later.
type lineage struct {
	mu     sync.Mutex // guards groups, links, and all nodes' looked
	groups map[string]*group
	links  map[[2]string]*link
}

// group is the snapshots of one Snapshot.Lineage that were ever opened.
type group struct {
	name  string
	nodes map[string]*node
}

// node is one of them.
type node struct {
	ID     string    `json:"id"`
	Start  time.Time `json:"start"`
	Blocks int64     `json:"blocks"`
	group  *group
	looked map[int64]neighbours // by region
}

// neighbours are ids; "" where there is none.
type neighbours [2]string

// link is what has changed between two snapshots, the older one first.
type link struct {
	a, b    *node
	changed *rangeMap
	dead    atomic.Bool // they can't be compared
}

func (l *lineage) init() {
	l.groups, l.links = map[string]*group{}, map[[2]string]*link{}
}

func (c *Client) groupKey(name string) string { return c.Key("groups/" + keySafe(name)) }
func (c *Client) lookedKey(id string) string  { return c.Key(id) + "/looked" }
func (l *link) blobKey(c *Client) string      { return c.Key("links/" + l.a.ID + "." + l.b.ID) }

// maxGroup caps how much of a stored group is believed: AWS's quota of snapshots
// per region.
const maxGroup = 100_000

// join makes a snapshot known to its lineage.
func (c *Client) join(s *Snapshot) *node {
	name := s.Lineage()
	l := &c.lineage
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[name]
	if g == nil {
		g = &group{name: name, nodes: map[string]*node{}}
		l.groups[name] = g
		var stored []*node
		if p, ok := c.blob(c.groupKey(name)); ok && json.Unmarshal(p, &stored) == nil && len(stored) <= maxGroup {
			for _, nd := range stored {
				if nd != nil && nd.Blocks > 0 && nd.Blocks <= maxVolumeGiB<<30/BlockSize && idForm.MatchString(nd.ID) {
					g.nodes[nd.ID] = nd
					c.loadNode(nd, g)
				}
			}
		}
	}
	nd := g.nodes[s.ID]
	if nd == nil || nd.Blocks != s.Size/BlockSize || !nd.Start.Equal(s.Start) {
		nd = &node{ID: s.ID, Start: s.Start, Blocks: s.Size / BlockSize}
		g.nodes[s.ID] = nd
		c.loadNode(nd, g)
		all := make([]*node, 0, len(g.nodes))
		for _, nd := range g.nodes {
			all = append(all, nd)
		}
		if p, err := json.Marshal(all); err == nil {
			c.setBlob(c.groupKey(name), p)
		}
	}
	return nd
}

func (c *Client) loadNode(nd *node, g *group) {
	nd.group, nd.looked = g, map[int64]neighbours{}
	if p, ok := c.blob(c.lookedKey(nd.ID)); ok {
		var stored map[int64]neighbours
		if json.Unmarshal(p, &stored) == nil && stored != nil {
			nd.looked = stored
		}
	}
}

// saveNode keeps which neighbours nd's regions have.
func (c *Client) saveNode(nd *node) {
	if c.cfg.Blobs == nil {
		return
	}
	c.lineage.mu.Lock()
	p, err := json.Marshal(nd.looked)
	c.lineage.mu.Unlock()
	if err == nil {
		c.setBlob(c.lookedKey(nd.ID), p)
	}
}

// neighboursOf returns nd's neighbours in a region, choosing them at the first
// time. fresh is true when they have just been chosen.
func (l *lineage) neighboursOf(nd *node, region int64) (n neighbours, fresh bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, ok := nd.looked[region]; ok {
		return n, false
	}
	var before, after *node
	for _, o := range nd.group.nodes {
		if _, ok := o.looked[region]; !ok || o == nd {
			continue
		}
		if older(o, nd) {
			if before == nil || older(before, o) {
				before = o
			}
		} else if after == nil || older(o, after) {
			after = o
		}
	}
	if before != nil {
		n[0] = before.ID
	}
	if after != nil {
		n[1] = after.ID
	}
	nd.looked[region] = n
	return n, true
}

func older(a, b *node) bool {
	return cmp.Or(a.Start.Compare(b.Start), strings.Compare(a.ID, b.ID)) < 0
}

// link returns the comparison of two nodes; nil when one is unknown.
func (c *Client) link(nd *node, other string) *link {
	l := &c.lineage
	l.mu.Lock()
	defer l.mu.Unlock()
	if other == "" {
		return nil
	}
	o := nd.group.nodes[other]
	if o == nil || o == nd {
		return nil
	}
	a, b := nd, o
	if older(b, a) {
		a, b = b, a
	}
	key := [2]string{a.ID, b.ID}
	k := l.links[key]
	if k == nil {
		k = &link{a: a, b: b}
		k.changed = newRangeMap(max(a.Blocks, b.Blocks), func(ctx context.Context, from int64, token string) (page, error) {
			return c.listChanged(ctx, a, b, from, token)
		}, nil)
		if p, ok := c.blob(k.blobKey(c)); ok {
			if err := k.changed.decode(p); err != nil {
				c.log.Warn("ebs: a stored comparison is damaged and is listed again", "first", a.ID, "second", b.ID)
			}
		}
		l.links[key] = k
	}
	return k
}

// compare makes sure that l is known in block n's region.
func (l *link) compare(ctx context.Context, c *Client, n int64) error {
	err := l.changed.ensure(ctx, n, true, func(list func(context.Context)) {
		c.goTracked(func() {
			list(c.ctx)
			if p, ok := l.changed.encode(); ok {
				c.setBlob(l.blobKey(c), p)
			}
		})
	})
	for _, kind := range []error{ErrNotFound, ErrDenied, ErrNotOwner, ErrRecycleBin, ErrArchived, ErrKMS, ErrPublic, errUnrelated} {
		if errors.Is(err, kind) {
			if !l.dead.Swap(true) {
				c.log.Info("ebs: snapshots can't be compared; blocks they have in common are fetched for each", "first", l.a.ID, "second", l.b.ID, "err", err)
			}
			return nil
		}
	}
	return err
}

// compared reports whether compare has nothing to do.
func (l *link) compared(n int64) bool {
	return l.dead.Load() || n >= l.changed.blocks || l.changed.knowsRegion(n/regionBlocks)
}

// same reports whether block n is known to be unchanged between l's snapshots.
func (l *link) same(n int64) bool {
	if l.dead.Load() || n >= min(l.a.Blocks, l.b.Blocks) {
		return false
	}
	set, known := l.changed.has(n)
	return known && !set
}

// look compares nd with its neighbours in block n's region. Errors only mean that
// less is known.
func (c *Client) look(ctx context.Context, nd *node, n int64) error {
	region := n / regionBlocks
	near, fresh := c.lineage.neighboursOf(nd, region)
	if fresh {
		c.saveNode(nd)
	}
	var wait []chan error
	for _, id := range near {
		l := c.link(nd, id)
		if l == nil || l.compared(n) {
			continue
		}
		done := make(chan error, 1)
		wait = append(wait, done)
		c.goTracked(func() { done <- l.compare(ctx, c, n) })
	}
	var first error
	for _, done := range wait {
		if err := <-done; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// prepare begins to compare in the background where a comparison will be needed.
func (c *Client) prepare(nd *node, n int64) {
	c.goTracked(func() { _ = c.look(c.ctx, nd, n) })
}

// Home returns the key under which block n is to be cached: that of the snapshot
// of the same disk for which it was fetched, or would be, if the block is the same
// there, else this one's. The bytes under a home's key are this disk's bytes. Home
// may list; it fails only when ctx ends. Where snapshots can't be compared, each
// is its own home.
func (d *Disk) Home(ctx context.Context, n int64) (string, error) {
	if err := d.check(n); err != nil {
		return "", err
	}
	if err := d.c.look(ctx, d.node, n); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		d.c.log.Info("ebs: no comparison for now", "snapshot", d.snap.ID, "err", err)
	}
	return d.c.Key(d.c.home(d.node, n)), nil
}

// HomeSize returns the size in bytes of the disk that a key of Home's names; 0 for
// any other key.
func (d *Disk) HomeSize(key string) int64 {
	l := &d.c.lineage
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, nd := range d.node.group.nodes {
		if d.c.Key(id) == key {
			return nd.Blocks * BlockSize
		}
	}
	return 0
}

// home follows what is known to be the same. Within one process neighbours are
// older looks than what they are neighbours of, and the way ends; two processes
// that keep their looks in the same place may make a circle, of which all members
// agree on the least.
func (c *Client) home(nd *node, n int64) string {
	c.lineage.mu.Lock()
	most := len(nd.group.nodes)
	c.lineage.mu.Unlock()
	for range most {
		to := c.towardsHome(nd, n)
		if to == nil {
			return nd.ID
		}
		nd = to
	}
	// As many steps as there are snapshots: nd lies in a circle.
	least := nd.ID
	for to := c.towardsHome(nd, n); to != nil && to != nd; to = c.towardsHome(to, n) {
		least = min(least, to.ID)
		if most--; most < 0 { // looks were added meanwhile
			break
		}
	}
	return least
}

// towardsHome returns the neighbour that has nd's block n; nil when none has.
func (c *Client) towardsHome(nd *node, n int64) *node {
	c.lineage.mu.Lock()
	near := nd.looked[n/regionBlocks]
	c.lineage.mu.Unlock()
	for _, id := range near {
		if l := c.link(nd, id); l != nil && l.same(n) {
			if l.a == nd {
				return l.b
			}
			return l.a
		}
	}
	return nil
}

var errUnrelated = errors.New("the snapshots aren't related")

// listChanged is the lister of changes between a and b.
func (c *Client) listChanged(ctx context.Context, a, b *node, from int64, token string) (page, error) {
	in := &awsebs.ListChangedBlocksInput{FirstSnapshotId: aws.String(a.ID), SecondSnapshotId: aws.String(b.ID), MaxResults: aws.Int32(maxResults)}
	if token != "" {
		in.NextToken = aws.String(token)
	} else {
		in.StartingBlockIndex = aws.Int32(int32(from))
	}
	var p page
	err := c.listCall(ctx, "ebs:ListChangedBlocks", b.ID, []*meter{&c.meter}, func(ctx context.Context) error {
		out, err := c.ebs.ListChangedBlocks(ctx, in)
		if reasonOf(err) == "UNRELATED_SNAPSHOTS" {
			return &unrelatedError{fmt.Errorf("%s and %s: %w", a.ID, b.ID, errUnrelated)}
		}
		if err != nil {
			return err
		}
		p = page{next: aws.ToString(out.NextToken), blocks: make([]int64, 0, len(out.ChangedBlocks))}
		for _, ch := range out.ChangedBlocks {
			if ch.BlockIndex == nil {
				return &answerError{fmt.Errorf("ebs: changes from %s to %s: a block without index", a.ID, b.ID)}
			}
			p.blocks = append(p.blocks, int64(*ch.BlockIndex))
		}
		return checkList(b.ID, b.Blocks*BlockSize, out.VolumeSize, out.BlockSize)
	})
	return p, err
}

// unrelatedError passes through the retries as it is.
type unrelatedError struct{ err error }

func (e *unrelatedError) Error() string { return e.err.Error() }
func (e *unrelatedError) Unwrap() error { return e.err }
