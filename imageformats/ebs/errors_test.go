package ebs_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"yester/imageformats/ebs"
	"yester/internal/ebsfake"
)

// TestProblems: what stands in the way is said, with what to do about it, before
// the first block is asked for or, where EC2 doesn't know, when it is.
func TestProblems(t *testing.T) {
	s := fake(t, ebsfake.Settings{})
	img := every(2048, 1)
	const key = "arn:aws:kms:us-east-1:111122223333:key/abcd"
	add(t, s,
		ebsfake.Snapshot{ID: "snap-01", VolumeID: "vol-01", Image: img},
		ebsfake.Snapshot{ID: "snap-02", VolumeID: "vol-01", VolumeSize: 1, State: "pending", Progress: "42%"},
		ebsfake.Snapshot{ID: "snap-03", VolumeID: "vol-01", VolumeSize: 1, Tier: "archive"},
		ebsfake.Snapshot{ID: "snap-04", VolumeID: "vol-01", VolumeSize: 1, InRecycle: true},
		ebsfake.Snapshot{ID: "snap-05", VolumeID: "vol-05", Image: img, KMSKey: key},
		ebsfake.Snapshot{ID: "snap-06", VolumeID: "vol-06", VolumeSize: 1, Owner: "444455556666"},
		ebsfake.Snapshot{ID: "snap-07", VolumeID: "vol-06", VolumeSize: 1, Owner: "444455556666", Public: true},
		ebsfake.Snapshot{ID: "snap-08", VolumeID: "vol-06", Image: img, Owner: "444455556666", SharedWith: []string{"111122223333"}},
		ebsfake.Snapshot{ID: "snap-09", VolumeID: "vol-09", VolumeSize: 1, State: "error"},
		ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", VolumeSize: 1, OutpostARN: "arn:aws:outposts:x"},
	)
	for _, tt := range []struct {
		id, deny string
		kind     error
		says     []string
	}{
		{"snap-01", "", nil, nil},
		{"snap-08", "", nil, nil},
		{"snap-02", "", ebs.ErrPending, []string{"42%", "wait"}},
		{"snap-03", "", ebs.ErrArchived, []string{"archive", "restore-snapshot-tier"}},
		{"snap-04", "", ebs.ErrRecycleBin, []string{"until", "restore-snapshot-from-recycle-bin"}},
		{"snap-04", "ec2:ListSnapshotsInRecycleBin", ebs.ErrNotFound, []string{"region"}},
		{"snap-05", "kms:Decrypt", ebs.ErrKMS, []string{key, "kms:Decrypt"}},
		{"snap-06", "", ebs.ErrNotOwner, []string{"share"}},
		{"snap-07", "", ebs.ErrPublic, []string{"copy"}},
		{"snap-09", "", ebs.ErrFailed, nil},
		{"snap-0a", "", ebs.ErrOutpost, nil},
		{"snap-0b", "", ebs.ErrNotFound, []string{"us-east-1"}},
		{"snap-01", "ebs:GetSnapshotBlock", ebs.ErrDenied, []string{"ebs:GetSnapshotBlock", "allow"}},
		{"snap-01", "ebs:ListSnapshotBlocks", ebs.ErrDenied, []string{"ebs:ListSnapshotBlocks", "allow"}},
		{"snap-01", "ec2:DescribeSnapshots", ebs.ErrDenied, []string{"ec2:DescribeSnapshots", "allow"}},
	} {
		t.Run(tt.id+tt.deny, func(t *testing.T) {
			s.SetSettings(ebsfake.Settings{Deny: []string{tt.deny}})
			err := fetchOne(t, tt.id)
			checkError(t, err, tt.kind, tt.says...)
		})
	}
	t.Run("changed since", func(t *testing.T) {
		// EC2 said it was fine when it was listed.
		s.SetSettings(ebsfake.Settings{})
		d := open(t, client(t, ebs.Config{}), "snap-01")
		p := make([]byte, ebs.BlockSize)
		s.Replace("snap-01", func(s *ebsfake.Snapshot) { s.InRecycle = true })
		checkError(t, d.Fetch(context.Background(), 0, p), ebs.ErrRecycleBin, "restore")
		s.Replace("snap-01", func(s *ebsfake.Snapshot) { s.InRecycle, s.Tier = false, "archive" })
		d = open2(t, d)
		checkError(t, d.Fetch(context.Background(), 0, p), ebs.ErrArchived)
	})
}

// open2 opens a disk's snapshot once more, with another Client.
func open2(t *testing.T, d *ebs.Disk) *ebs.Disk {
	t.Helper()
	d, err := client(t, ebs.Config{}).Open(d.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fetchOne does all there is between an id and a block.
func fetchOne(t *testing.T, id string) error {
	ctx := context.Background()
	c := client(t, ebs.Config{})
	found, err := c.Snapshots(ctx, ebs.Query{Snapshot: id})
	if err != nil {
		return err
	}
	d, err := c.Open(found[0])
	if err != nil {
		return err
	}
	return d.Fetch(ctx, 0, make([]byte, ebs.BlockSize))
}

// checkError compares an error's kind and what its text and hint say.
func checkError(t *testing.T, err, kind error, says ...string) {
	t.Helper()
	if kind == nil {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var e *ebs.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) {
		t.Fatalf("error %v, want %v", err, kind)
	}
	text := err.Error() + "; " + e.Hint()
	for _, s := range says {
		if !strings.Contains(text, s) {
			t.Errorf("%q doesn't say %q", text, s)
		}
	}
	for _, secret := range []string{ebsfake.TestCredentials.Secret, "blockToken", "AAUBA", "Signature="} {
		if strings.Contains(text, secret) {
			t.Errorf("%q shows a secret", text)
		}
	}
}

// TestConfiguration: no region, no credentials, wrong ones.
func TestConfiguration(t *testing.T) {
	s := fake(t, ebsfake.Settings{})
	add(t, s, ebsfake.Snapshot{ID: "snap-01", VolumeID: "vol-01", Image: every(2048, 1)})
	ctx := context.Background()
	t.Run("no region", func(t *testing.T) {
		t.Setenv("AWS_REGION", "")
		t.Setenv("AWS_DEFAULT_REGION", "")
		_, err := ebs.New(ctx, ebs.Config{})
		checkError(t, err, ebs.ErrRegion, "AWS_REGION")
		if c, err := ebs.New(ctx, ebs.Config{Region: "eu-west-1"}); err != nil || c.Region() != "eu-west-1" {
			t.Errorf("region by configuration: %v", err)
		}
	})
	t.Run("no credentials", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		_, err := ebs.New(ctx, ebs.Config{})
		checkError(t, err, ebs.ErrCredentials, "get-caller-identity")
	})
	t.Run("no such profile", func(t *testing.T) {
		_, err := ebs.New(ctx, ebs.Config{Profile: "nobody"})
		checkError(t, err, ebs.ErrCredentials, "nobody")
	})
	t.Run("wrong secret", func(t *testing.T) {
		t.Setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
		err := fetchOne(t, "snap-01")
		checkError(t, err, ebs.ErrCredentials, "SignatureDoesNotMatch")
		if strings.Contains(err.Error(), "topsecret") {
			t.Errorf("shown: %v", err)
		}
		c := client(t, ebs.Config{})
		d, err := c.Open(ebs.Snapshot{ID: "snap-01", Size: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.Zero(ctx, 0)
		checkError(t, err, ebs.ErrCredentials)
	})
	t.Run("wrong size", func(t *testing.T) {
		d, err := client(t, ebs.Config{}).Open(ebs.Snapshot{ID: "snap-01", Size: 2 << 30})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Zero(ctx, 0); err == nil || !strings.Contains(err.Error(), "1 GiB") {
			t.Errorf("a snapshot of another size: %v", err)
		}
	})
}

// TestThrottledForGood: throttling that doesn't end is an error of its own.
func TestThrottledForGood(t *testing.T) {
	s := fake(t, ebsfake.Settings{})
	add(t, s, ebsfake.Snapshot{ID: "snap-01", VolumeID: "vol-01", Image: every(2048, 1)})
	told := 0
	d := open(t, client(t, ebs.Config{Attempts: 4, Throttled: func(string) { told++ }}), "snap-01")
	if _, err := d.Zero(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	s.SetSettings(ebsfake.Settings{Faults: ebsfake.Faults{Throttle: 1}})
	checkError(t, d.Fetch(context.Background(), 0, make([]byte, ebs.BlockSize)), ebs.ErrThrottled, "ACCOUNT_THROTTLED")
	if told != 4 {
		t.Errorf("told %d times, want 4", told)
	}
}

// TestThrottle: with a rate below what is asked for, all comes in the end.
func TestThrottle(t *testing.T) {
	s := fake(t, ebsfake.Settings{SnapshotRate: 20})
	add(t, s, ebsfake.Snapshot{ID: "snap-01", VolumeID: "vol-01", Image: every(2048, 1)})
	d := open(t, client(t, ebs.Config{BaseDelay: 20 * time.Millisecond, Attempts: 12}), "snap-01")
	if err := inParallel(30, func(n int64) error { return d.Fetch(context.Background(), n, make([]byte, ebs.BlockSize)) }); err != nil {
		t.Fatal(err)
	}
	if s.Counts()["Error:RequestThrottledException"] == 0 {
		t.Error("nothing was throttled: the test tests nothing")
	}
}

// TestMaxCost: the limit holds, whatever runs in parallel, and says so.
func TestMaxCost(t *testing.T) {
	s := fake(t, ebsfake.Settings{Faults: ebsfake.Faults{InternalError: 0.2, MaxRow: 3}})
	add(t, s, ebsfake.Snapshot{ID: "snap-01", VolumeID: "vol-01", Image: every(2048, 1)})
	c := client(t, ebs.Config{MaxCost: 0.0006 + 0.0000006}) // 200 blocks and a list
	d := open(t, c, "snap-01")
	err := inParallel(2048, func(n int64) error { return d.Fetch(context.Background(), n, make([]byte, ebs.BlockSize)) })
	checkError(t, err, ebs.ErrMaxCost, "$0.0006", "--max-cost")
	// The last blocks may have found the money taken by others, and given back.
	for n := int64(0); err == nil || c.Cost().Blocks < 200; n++ {
		if err = d.Fetch(context.Background(), n, make([]byte, ebs.BlockSize)); err != nil {
			break
		}
	}
	checkError(t, d.Fetch(context.Background(), 7, make([]byte, ebs.BlockSize)), ebs.ErrMaxCost)
	if cost := c.Cost(); cost.Blocks != 200 || cost.Lists != 1 || cost.Dollars() > 0.00060061 {
		t.Errorf("spent %v", cost)
	}
	if n := s.Counts()["Blocks"]; n != 200 {
		t.Errorf("the server sent %d blocks", n)
	}
}
