package fusefs

// Forget drops what a mount that is an image has of it in memory.
func (m *Mount) Forget() {
	im := m.images
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, t := range im.kept {
		t.mu.Lock()
		t.tree = nil
		t.mu.Unlock()
	}
	im.kept = nil
}

// Regions returns how many points of an image have been given a place for contents.
func (m *Mount) Regions() int {
	m.images.mu.Lock()
	defer m.images.mu.Unlock()
	return len(m.images.runs)
}
