package restorepoint

import (
	"context"
	"fmt"
	"sync"

	"yester/guestfs"
	"yester/imageformats"
)

// imagePool shares opened images: the points of a chain have their ancestors in
// common, and each is opened once however many points are. An image stays open
// while somebody holds it.
type imagePool struct {
	// open opens one image, or a snapshot inside it, on top of its opened parent,
	// nil for a base.
	open func(ctx context.Context, f *imageFile, snapshot string, parent *pooledImage) (imageformats.Image, *hostFile, error)

	mu     sync.Mutex
	images map[string]*pooledImage // by imageFile.key and snapshot
}

// pooledImage is an opened image of an imagePool.
type pooledImage struct {
	imageformats.Image
	file   *hostFile
	info   imageformats.Info
	parent *pooledImage
	key    string
	refs   int // guarded by imagePool.mu
}

// get opens f, or the snapshot inside it of that id, and its ancestors, or takes
// those that are open already. The caller gives it back with put.
func (ip *imagePool) get(ctx context.Context, f *imageFile, snapshot string) (*pooledImage, error) {
	ip.mu.Lock()
	defer ip.mu.Unlock()
	chain := f.chain()
	var below *pooledImage // holds one reference, passed on to its child
	for i := len(chain) - 1; i >= 0; i-- {
		key, state := chain[i].key, ""
		if i == 0 && snapshot != "" { // a parent is always its active state
			key, state = key+"@"+snapshot, snapshot
		}
		if img, ok := ip.images[key]; ok {
			img.refs++
			ip.putLocked(below) // img holds its parent already
			below = img
			continue
		}
		img, file, err := ip.open(ctx, chain[i], state, below)
		if err != nil {
			ip.putLocked(below)
			return nil, err
		}
		if ip.images == nil {
			ip.images = make(map[string]*pooledImage)
		}
		below = &pooledImage{Image: img, file: file, info: chain[i].info, parent: below, key: key, refs: 1}
		ip.images[key] = below
	}
	return below, nil
}

// put gives an image back that get returned.
func (ip *imagePool) put(img *pooledImage) {
	ip.mu.Lock()
	defer ip.mu.Unlock()
	ip.putLocked(img)
}

func (ip *imagePool) putLocked(img *pooledImage) {
	for img != nil {
		if img.refs--; img.refs > 0 {
			return
		}
		delete(ip.images, img.key)
		img.Image.Close()
		img.file.close()
		img = img.parent
	}
}

// openImage is the pool's open.
func (s *Source) openImage(ctx context.Context, f *imageFile, snapshot string, parent *pooledImage) (imageformats.Image, *hostFile, error) {
	file, err := s.openFile(ctx, f)
	if err != nil {
		return nil, nil, err
	}
	extents, err := file.open(ctx, s.dir, f.extents)
	if err != nil {
		file.close()
		return nil, nil, err
	}
	opt := imageformats.OpenOptions{
		Name:               f.name,
		Files:              extents,
		Snapshot:           snapshot,
		IgnoreLog:          s.opt.Replay == guestfs.ReplayOff,
		AllowChangedParent: s.opt.AllowChangedParent,
		Logger:             s.opt.Logger.With("file", f.name),
	}
	if parent != nil {
		opt.Parent, opt.ParentInfo = parent.Image, &parent.info
		opt.ParentName, opt.ParentModTime = f.parent.name, f.parent.parts[0].ModTime
	}
	img, err := f.format.Open(ctx, file.bytes, opt)
	if err != nil {
		file.close()
		return nil, nil, fmt.Errorf("%s: %w", f.name, err)
	}
	return img, file, nil
}
