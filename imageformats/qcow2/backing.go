package qcow2

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// readBacking reads what the image says of its backing file; nil when it has none.
func (m *meta) readBacking(ctx context.Context, file block.Reader, format string) (*imageformats.Parent, error) {
	if m.backingOffset == 0 {
		return nil, nil
	}
	if m.backingSize > maxBacking {
		return nil, ondisk.Corruptf("qcow2", "backing file's name", offBackingSize, "%d bytes long", m.backingSize)
	}
	if end := uint64(1) << m.clusterBits; m.backingOffset > end || uint64(m.backingSize) > end-m.backingOffset {
		return nil, ondisk.Corruptf("qcow2", "backing file's name", offBackingOffset, "%d bytes at %#x, beyond the first cluster", m.backingSize, m.backingOffset)
	}
	stored, err := readString(ctx, file, int64(m.backingOffset), m.backingSize, "backing file's name")
	if err != nil {
		return nil, err
	}
	if stored == "" {
		return nil, nil // so does QEMU mark an image whose backing file was cut off
	}
	name, driver, err := backingName(stored)
	if err != nil {
		return nil, ondisk.Unsupportedf("qcow2", "backing file's name", int64(m.backingOffset), "%.200q: %v", stored, err)
	}
	if format == "" {
		format = driver
	}
	return &imageformats.Parent{Name: name, Format: formatName(format)}, nil
}

// formatName gives QEMU's name of a container the one it has here.
func formatName(qemu string) string {
	if qemu == "vpc" {
		return "vhd"
	}
	return qemu
}

// backingName takes the name of a backing file as QEMU stores it for the path in
// it, and the format that a json: name may say. A name that leads elsewhere than
// to a file is an error.
func backingName(stored string) (name, format string, err error) {
	if text, ok := strings.CutPrefix(stored, "json:"); ok {
		return jsonName(text)
	}
	name = strings.TrimPrefix(stored, "file:")
	if i := strings.IndexAny(name, ":/"); i > 1 && name[i] == ':' && name == stored {
		// One letter would be a drive of Windows.
		return "", "", fmt.Errorf("protocol %.40q", name[:i])
	}
	return name, "", nil
}

// jsonName finds the path in a json: pseudo-protocol name (QEMU, "Block device
// options"): {"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}},
// or the same with the key "file.filename". Every option that isn't understood is
// an error, as it may change what is read (offset, size, a key).
func jsonName(text string) (name, format string, err error) {
	var node map[string]any
	if err := json.Unmarshal([]byte(text), &node); err != nil {
		return "", "", fmt.Errorf("json: %w", err)
	}
	flat := make(map[string]any)
	for k, v := range node {
		if inner, ok := v.(map[string]any); ok && k == "file" {
			for k, v := range inner {
				flat["file."+k] = v
			}
			continue
		}
		flat[k] = v
	}
	for k, v := range flat {
		s, ok := v.(string)
		switch {
		case !ok:
			return "", "", fmt.Errorf("option %.40q", k)
		case k == "file.filename":
			name = s
		case k == "filename" && flat["driver"] == "file":
			name = s
		case k == "driver" && s != "file":
			format = s
		case k == "driver", k == "file.driver" && s == "file":
		default:
			return "", "", fmt.Errorf("option %.40q: %.40q", k, s)
		}
	}
	if name == "" {
		return "", "", fmt.Errorf("no file name")
	}
	return name, format, nil
}
