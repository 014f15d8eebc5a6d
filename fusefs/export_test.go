package fusefs

import "time"

// Forget drops what a mount that is an image has in memory, and closes its points.
func (m *Mount) Forget() {
	im := m.images
	im.mu.Lock()
	for _, t := range im.loaded {
		t.files = nil
	}
	im.loaded = nil
	im.mu.Unlock()
	for _, s := range m.fs.cat.all() {
		s.retire(time.Now(), false)
	}
}

// Regions returns how many points of an image have been given a place for contents.
func (m *Mount) Regions() int {
	m.images.mu.Lock()
	defer m.images.mu.Unlock()
	return len(m.images.runs)
}
