package ebs_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"yester/imageformats/ebs"
	"yester/internal/ebsfake"
)

func TestParseQuery(t *testing.T) {
	for address, want := range map[string]ebs.Query{
		"ebs://snap-0123456789abcdef0":                    {Snapshot: "snap-0123456789abcdef0"},
		"ebs://vol-0a?region=eu-central-1&profile=backup": {Volume: "vol-0a", Region: "eu-central-1", Profile: "backup"},
		"ebs://i-0a/":           {Instance: "i-0a"},
		"ebs://?tag:Name=web01": {Tags: map[string][]string{"Name": {"web01"}}},
		"ebs://?tag:Name=a&tag:Name=b&tag:aws:x=1&owner=1111222": {Tags: map[string][]string{"Name": {"a", "b"}, "aws:x": {"1"}}, Owners: []string{"1111222"}},
	} {
		if got, err := ebs.ParseQuery(address); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", address, got, err, want)
		}
	}
	for _, address := range []string{
		"", "ebs://", "s3://snap-0a", "ebs://web01", "ebs://snap-0G", "ebs://snap-0a/disk", "ebs://?name=web01", "ebs://snap-0a?tag:Name=x",
		"ebs://snap-0a#x", "ebs://key:secret@snap-0a", "ebs://?tag:=x", "ebs://vol-0a?region=a&region=b", "ebs://snap-" + strings.Repeat("0", 80),
	} {
		if q, err := ebs.ParseQuery(address); err == nil {
			t.Errorf("%q is taken for %+v", address, q)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// TestSnapshots finds snapshots in each of the ways.
func TestSnapshots(t *testing.T) {
	s := fake(t, ebsfake.Settings{})
	day := time.Date(2026, 11, 1, 3, 0, 0, 0, time.UTC)
	snap := func(id, vol string, at time.Duration, tags map[string]string) ebsfake.Snapshot {
		return ebsfake.Snapshot{ID: id, VolumeID: vol, VolumeSize: 8, StartTime: day.Add(at), Tags: tags}
	}
	web := map[string]string{"Name": "web01"}
	add(t, s,
		snap("snap-02", "vol-01", 24*time.Hour, web), snap("snap-01", "vol-01", 0, web), snap("snap-03", "vol-02", time.Minute, web),
		snap("snap-04", "vol-09", 0, map[string]string{"Name": "db"}),
		ebsfake.Snapshot{ID: "snap-05", VolumeID: "vol-01", VolumeSize: 8, StartTime: day.Add(48 * time.Hour), Owner: "444455556666", SharedWith: []string{"111122223333"}},
		ebsfake.Snapshot{ID: "snap-06", VolumeID: "vol-01", VolumeSize: 8, StartTime: day.Add(49 * time.Hour), State: "pending", Progress: "3%"},
	)
	for n := range 1100 { // more than a page
		add(t, s, ebsfake.Snapshot{ID: fmt.Sprintf("snap-f%04x", n), VolumeID: "vol-0f", VolumeSize: 1, StartTime: day.Add(time.Duration(n) * time.Hour)})
	}
	s.AddInstance(ebsfake.Instance{ID: "i-01", Root: "/dev/xvda", Devices: map[string]string{"/dev/xvda": "vol-01", "/dev/sdf": "vol-02"}})
	s.AddInstance(ebsfake.Instance{ID: "i-02"})
	c := client(t, ebs.Config{})
	ctx := context.Background()
	for address, want := range map[string]string{
		"ebs://snap-05":                          "snap-05",
		"ebs://vol-01":                           "snap-01 snap-02 snap-06",
		"ebs://vol-01?owner=444455556666":        "snap-05",
		"ebs://?tag:Name=web*":                   "snap-01 snap-03 snap-02",
		"ebs://i-01":                             "snap-01 snap-03 snap-02 snap-06",
		"ebs://vol-77":                           "none",
		"ebs://i-02":                             "none",
		"ebs://i-77":                             "none",
		"ebs://?tag:Name=nobody":                 "none",
		"ebs://snap-77":                          "none",
		"ebs://?tag:Name=web01&tag:Stage=pr?d*x": "none",
	} {
		q, err := ebs.ParseQuery(address)
		if err != nil {
			t.Fatal(err)
		}
		found, err := c.Snapshots(ctx, q)
		var ids []string
		for _, s := range found {
			ids = append(ids, s.ID)
		}
		got := strings.Join(ids, " ")
		if errors.Is(err, ebs.ErrNotFound) {
			got = "none"
			err = nil
		}
		if got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", address, got, err, want)
		}
	}
	found, err := c.Snapshots(ctx, ebs.Query{Instance: "i-01"})
	if err != nil {
		t.Fatal(err)
	}
	if s := found[1]; s.Device != "/dev/sdf" || s.Size != 8<<30 || !s.Start.Equal(day.Add(time.Minute)) || s.Tags["Name"] != "web01" || s.Owner != "111122223333" {
		t.Errorf("%+v", s)
	}
	if err := found[3].Problem(); !errors.Is(err, ebs.ErrPending) {
		t.Errorf("problem of a pending one: %v", err)
	}
	if found, err := c.Snapshots(ctx, ebs.Query{Volume: "vol-0f"}); err != nil || len(found) != 1100 {
		t.Errorf("%d snapshots, %v", len(found), err)
	}
}

// TestMarks: who made a snapshot, and what disk it is of.
func TestMarks(t *testing.T) {
	s := fake(t, ebsfake.Settings{})
	for i, tt := range []struct {
		snap    ebsfake.Snapshot
		mark    ebs.Mark
		lineage string
	}{
		{ebsfake.Snapshot{VolumeID: "vol-01"}, ebs.Mark{}, "vol-01"},
		{ebsfake.Snapshot{VolumeID: "vol-01", Tags: map[string]string{"aws:dlm:lifecycle-policy-id": "policy-0a"}}, ebs.Mark{By: "dlm", Policy: "policy-0a"}, "vol-01"},
		{ebsfake.Snapshot{VolumeID: "vol-01", Description: "Created for policy: policy-0b schedule: Daily"}, ebs.Mark{By: "dlm", Policy: "policy-0b"}, "vol-01"},
		{ebsfake.Snapshot{VolumeID: "vol-01", Description: "This snapshot is created by the AWS Backup service."}, ebs.Mark{By: "backup"}, "vol-01"},
		{ebsfake.Snapshot{VolumeID: "vol-ffffffff", Tags: map[string]string{"aws:backup:source-resource": "vol-01:x", "Name": "n"}}, ebs.Mark{By: "backup", Policy: "vol-01:x"}, "copy-vol-01:x"},
		{ebsfake.Snapshot{VolumeID: "vol-ffffffff", Tags: map[string]string{"Name": "n"}}, ebs.Mark{}, "copy-111122223333-n-8"},
		{ebsfake.Snapshot{VolumeID: "vol-ffffffff"}, ebs.Mark{}, "snap-06"},
	} {
		tt.snap.ID, tt.snap.VolumeSize = fmt.Sprintf("snap-%02x", i), 8
		add(t, s, tt.snap)
		found, err := client(t, ebs.Config{}).Snapshots(context.Background(), ebs.Query{Snapshot: tt.snap.ID})
		if err != nil {
			t.Fatal(err)
		}
		if found[0].Mark != tt.mark || found[0].Lineage() != tt.lineage {
			t.Errorf("%d: %+v, %s", i, found[0].Mark, found[0].Lineage())
		}
	}
}

// TestPoints groups snapshots of several disks.
func TestPoints(t *testing.T) {
	day := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	var all []ebs.Snapshot
	n := 0
	snap := func(vol, device string, minute int, mark ebs.Mark) {
		n++
		all = append(all, ebs.Snapshot{ID: fmt.Sprintf("snap-%02x", n), Volume: vol, Device: device, Start: day.Add(time.Duration(minute) * time.Minute), Mark: mark})
	}
	dlm, dlm2, backup := ebs.Mark{By: "dlm", Policy: "p"}, ebs.Mark{By: "dlm", Policy: "q"}, ebs.Mark{By: "backup", Policy: "vol-1"}
	backup2 := ebs.Mark{By: "backup", Policy: "vol-2"}
	snap("vol-2", "/dev/sdb", 0, dlm) // one moment, as CreateSnapshots does
	snap("vol-1", "/dev/sda", 0, dlm)
	snap("vol-1", "/dev/sda", 1, backup) // between: another make
	snap("vol-2", "/dev/sdb", 9, backup2)
	snap("vol-1", "/dev/sda", 60, dlm) // the next hour, volume by volume
	snap("vol-2", "/dev/sdb", 75, dlm)
	snap("vol-1", "/dev/sda", 120, dlm) // one volume's is missing
	snap("vol-2", "/dev/sdb", 136, dlm) // a minute too late
	snap("vol-1", "/dev/sda", 137, dlm) // within its window
	snap("vol-1", "/dev/sda", 138, dlm) // again: another point
	snap("vol-1", "/dev/sda", 139, dlm2)
	var got []string
	for _, p := range ebs.Points(all, 15*time.Minute) {
		text := fmt.Sprintf("%d:", int(p.Time.Sub(day).Minutes()))
		for _, s := range p.Snapshots {
			text += " " + s.ID
		}
		if p.Missing != nil {
			text += " without " + strings.Join(p.Missing, " ")
		}
		got = append(got, text)
	}
	want := []string{"0: snap-02 snap-01", "9: snap-03 snap-04", "75: snap-05 snap-06", "120: snap-07 without vol-2", "137: snap-09 snap-08",
		"138: snap-0a without vol-2", "139: snap-0b"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("points\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if p := ebs.Points(nil, time.Hour); p != nil {
		t.Errorf("of nothing: %v", p)
	}
}

func TestCost(t *testing.T) {
	for want, c := range map[string]ebs.Cost{
		"1,234 blocks (617 MiB), 3 lists ≈ $0.0037":                {Blocks: 1234, Lists: 3},
		"1 block (0.5 MiB), 1 list ≈ $0.000004":                    {Blocks: 1, Lists: 1},
		"0 blocks (0 MiB), 0 lists ≈ $0.0000":                      {},
		"33,554,432 blocks (16384.0 GiB), 0 lists ≈ $100.66":       {Blocks: 33554432},
		"10 blocks (5 MiB), 2 lists, 7 retries ≈ $0.000031":        {Blocks: 10, Lists: 2, RetriedBlocks: 4, RetriedLists: 3},
		"999 blocks (499.5 MiB), 0 lists, 1,001 retries ≈ $0.0060": {Blocks: 999, RetriedBlocks: 1001, Discarded: 1001},
	} {
		c.Rates = ebs.DefaultRates
		if got := c.String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	s := ebs.Snapshot{Size: 8 << 30}
	if c := s.MaxCost(ebs.DefaultRates); c.Blocks != 16384 || c.Lists != 2 {
		t.Errorf("at most %v", c)
	}
	s.FullSize = 1 << 30
	if c := s.MaxCost(ebs.Rates{Per1000Blocks: 1}); c.Blocks != 2048 || c.Dollars() != 2.048 {
		t.Errorf("at most %v", c)
	}
}
