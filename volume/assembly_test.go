package volume_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"yester/internal/ondisk"
	"yester/internal/readertest"
	"yester/volume"
)

// TestAssemble stacks two assemblies: the second is offered what the first made.
func TestAssemble(t *testing.T) {
	var seen [][]string
	pair := func(name string) volume.Assembly {
		return volume.Assembly{Name: name, Open: func(_ context.Context, devs []volume.Device, _ volume.Options) (*volume.Assembled, error) {
			var names []string
			for _, d := range devs {
				names = append(names, d.Name)
			}
			seen = append(seen, names)
			last := len(devs) - 1
			return &volume.Assembled{
				Members: []volume.Member{{Device: last, Group: name}},
				Groups:  []volume.Group{{Name: name, Volumes: []volume.Volume{{Name: name + "0", Reader: devs[last].Reader}}}},
			}, nil
		}}
	}
	devs := []volume.Device{{Name: "a", Reader: readertest.Bytes("a")}, {Name: "b", Reader: readertest.Bytes("b")}}
	found, err := volume.Assemble(context.Background(), devs, volume.Options{}, pair("md"), pair("vg"))
	if err != nil {
		t.Fatal(err)
	}
	if want := [][]string{{"a", "b"}, {"a", "b", "md0"}}; !slices.EqualFunc(seen, want, slices.Equal[[]string]) {
		t.Errorf("offered %q, want %q", seen, want)
	}
	if len(found) != 2 || found[1].Members[0].Device != 2 {
		t.Errorf("got %+v", found)
	}
	failing := volume.Assembly{Name: "bad", Open: func(context.Context, []volume.Device, volume.Options) (*volume.Assembled, error) {
		return nil, context.Canceled
	}}
	if _, err := volume.Assemble(context.Background(), devs, volume.Options{}, failing); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestErrMissing(t *testing.T) {
	err := fmt.Errorf("disk 2: %w", volume.ErrMissing)
	if !errors.Is(err, volume.ErrMissing) || !errors.Is(err, ondisk.ErrCorrupt) || errors.Is(err, ondisk.ErrUnsupported) || strings.Contains(err.Error(), "corrupt") {
		t.Error(err)
	}
	u := &volume.Unreadable{Bytes: 10, Err: err}
	if n, got := u.ReadAt(make([]byte, 4), 0); n != 0 || got != err || u.Size() != 10 {
		t.Error(n, got)
	}
	var g volume.Group
	for range 100 {
		g.Warnf("one")
	}
	if len(g.Warnings) != 64 {
		t.Errorf("%d warnings", len(g.Warnings))
	}
}
