package ebsfake_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"yester/internal/ebsfake"
	"yester/internal/treetest"
)

// config is a configuration for the real SDK that leads to the fake.
func config(url, key, secret string) aws.Config {
	return aws.Config{
		Region: "us-east-1", BaseEndpoint: aws.String(url),
		Credentials: credentials.NewStaticCredentialsProvider(key, secret, ""),
		Retryer:     func() aws.Retryer { return aws.NopRetryer{} },
	}
}

func start(t *testing.T, opt ebsfake.Options) (*ebsfake.Server, string) {
	t.Helper()
	s := ebsfake.New(opt)
	url, err := s.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, url
}

func clients(url string) (*ebs.Client, *ec2.Client) {
	c := config(url, ebsfake.TestCredentials.AccessKey, ebsfake.TestCredentials.Secret)
	return ebs.NewFromConfig(c), ec2.NewFromConfig(c)
}

// disk makes a sparse raw image with recognisable blocks: a page at the beginning
// of each, the whole block where it is of fours.
func disk(t *testing.T, dir, name string, size int64, blocks map[int64]byte) *ebsfake.File {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for n, fill := range blocks {
		length := 4096
		if fill == 4 {
			length = min(ebsfake.BlockSize, int(size-n*ebsfake.BlockSize))
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{fill}, length), n*ebsfake.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	img, err := ebsfake.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func add(t *testing.T, s *ebsfake.Server, snaps ...ebsfake.Snapshot) {
	t.Helper()
	for _, snap := range snaps {
		if err := s.Add(snap); err != nil {
			t.Fatal(err)
		}
	}
}

// twoDays gives a server two snapshots of one volume, of 1.5 GiB less a sector,
// and some that can't be read.
func twoDays(t *testing.T, s *ebsfake.Server) {
	t.Helper()
	dir := t.TempDir()
	size := int64(3<<29 - 512)
	day := time.Date(2026, 11, 1, 3, 0, 0, 0, time.UTC)
	tags := map[string]string{"Name": "web01", "aws:dlm:lifecycle-policy-id": "policy-0a"}
	one := map[int64]byte{0: 1, 1: 2, 7: 3, 8: 0, 3071: 4}
	two := map[int64]byte{0: 1, 1: 9, 9: 5, 3071: 4}
	for n := int64(100); n < 400; n++ {
		one[n], two[n] = byte(n)|1, byte(n)|1
	}
	add(t, s,
		ebsfake.Snapshot{ID: "snap-01", VolumeID: "vol-01", Image: disk(t, dir, "one", size, one), StartTime: day, Tags: tags, Description: "Created for policy: policy-0a"},
		ebsfake.Snapshot{ID: "snap-02", VolumeID: "vol-01", Image: disk(t, dir, "two", size, two), StartTime: day.Add(24 * time.Hour), Tags: tags},
		ebsfake.Snapshot{ID: "snap-03", VolumeID: "vol-03", Image: disk(t, dir, "three", 1<<30, nil), KMSKey: "arn:aws:kms:us-east-1:111122223333:key/k"},
		ebsfake.Snapshot{ID: "snap-04", VolumeID: "vol-01", VolumeSize: 2, State: "pending", Progress: "42%"},
		ebsfake.Snapshot{ID: "snap-05", VolumeID: "vol-01", VolumeSize: 2, Tier: "archive"},
		ebsfake.Snapshot{ID: "snap-06", VolumeID: "vol-06", VolumeSize: 2, Owner: "444455556666"},
		ebsfake.Snapshot{ID: "snap-07", VolumeID: "vol-06", VolumeSize: 2, Owner: "444455556666", Public: true},
		ebsfake.Snapshot{ID: "snap-08", VolumeID: "vol-01", VolumeSize: 2, InRecycle: true},
	)
	s.AddInstance(ebsfake.Instance{ID: "i-01", Root: "/dev/xvda", Devices: map[string]string{"/dev/xvda": "vol-01", "/dev/xvdb": "vol-03"}})
}

// TestSDK reads through the real SDK what was put in.
func TestSDK(t *testing.T) {
	s, url := start(t, ebsfake.Options{})
	twoDays(t, s)
	ctx := context.Background()
	e, _ := clients(url)

	out, err := e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01"), MaxResults: aws.Int32(100)})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Blocks) != 100 || out.NextToken == nil || *out.VolumeSize != 2 || *out.BlockSize != 512<<10 {
		t.Fatalf("first page: %d blocks, token %v, %d GiB, blocks of %d", len(out.Blocks), out.NextToken, *out.VolumeSize, *out.BlockSize)
	}
	if d := time.Until(*out.ExpiryTime); d < 7*24*time.Hour-time.Minute || d > 7*24*time.Hour+time.Minute {
		t.Errorf("block tokens expire in %v", d)
	}
	// Block 8 was written with zeros; that it is not listed is this fake's choice.
	for i, want := range []int32{0, 1, 7, 100} {
		if got := *out.Blocks[i].BlockIndex; got != want {
			t.Errorf("block %d is %d, want %d", i, got, want)
		}
	}
	all := len(out.Blocks)
	last := out.Blocks[len(out.Blocks)-1]
	for out.NextToken != nil {
		// The index is ignored beside a token.
		out, err = e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01"), MaxResults: aws.Int32(100), NextToken: out.NextToken, StartingBlockIndex: aws.Int32(3)})
		if err != nil {
			t.Fatal(err)
		}
		if *out.Blocks[0].BlockIndex <= *last.BlockIndex {
			t.Fatalf("page begins at %d after %d", *out.Blocks[0].BlockIndex, *last.BlockIndex)
		}
		all += len(out.Blocks)
		last = out.Blocks[len(out.Blocks)-1]
	}
	if all != 304 || *last.BlockIndex != 3071 {
		t.Fatalf("%d blocks up to %d, want 304 up to 3071", all, *last.BlockIndex)
	}

	got, err := e.GetSnapshotBlock(ctx, &ebs.GetSnapshotBlockInput{SnapshotId: aws.String("snap-01"), BlockIndex: last.BlockIndex, BlockToken: last.BlockToken})
	if err != nil {
		t.Fatal(err)
	}
	defer got.BlockData.Close()
	data, err := io.ReadAll(got.BlockData)
	if err != nil {
		t.Fatal(err)
	}
	want := append(bytes.Repeat([]byte{4}, 512<<10-512), make([]byte, 512)...)
	sum := sha256.Sum256(want)
	if !bytes.Equal(data, want) || *got.Checksum != base64.StdEncoding.EncodeToString(sum[:]) || *got.DataLength != 512<<10 || got.ChecksumAlgorithm != types.ChecksumAlgorithmChecksumAlgorithmSha256 {
		t.Errorf("the last block: %d bytes, checksum %s, length %d", len(data), *got.Checksum, *got.DataLength)
	}

	ch, err := e.ListChangedBlocks(ctx, &ebs.ListChangedBlocksInput{FirstSnapshotId: aws.String("snap-01"), SecondSnapshotId: aws.String("snap-02")})
	if err != nil {
		t.Fatal(err)
	}
	type change struct {
		n             int32
		first, second bool
	}
	var changes []change
	for _, c := range ch.ChangedBlocks {
		changes = append(changes, change{*c.BlockIndex, c.FirstBlockToken != nil, c.SecondBlockToken != nil})
	}
	if w := []change{{1, true, true}, {7, true, false}, {9, false, true}}; len(changes) != 3 || changes[0] != w[0] || changes[1] != w[1] || changes[2] != w[2] {
		t.Errorf("changes %v, want %v", changes, w)
	}
	counts := s.Counts()
	if counts["ListSnapshotBlocks"] != 4 || counts["GetSnapshotBlock"] != 1 || counts["Blocks"] != 1 || counts["ListChangedBlocks"] != 1 {
		t.Errorf("counts %v", counts)
	}
}

// TestErrors compares the types and reasons of errors.
func TestErrors(t *testing.T) {
	s, url := start(t, ebsfake.Options{})
	twoDays(t, s)
	e, _ := clients(url)
	ctx := context.Background()
	list := func(id string) error {
		_, err := e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: &id})
		return err
	}
	get := func(id string, n int32, token string) error {
		_, err := e.GetSnapshotBlock(ctx, &ebs.GetSnapshotBlockInput{SnapshotId: &id, BlockIndex: &n, BlockToken: &token})
		return err
	}
	page, err := e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01"), MaxResults: aws.Int32(100)})
	if err != nil {
		t.Fatal(err)
	}
	token := *page.Blocks[0].BlockToken
	if len(token) != 60 || token == *page.Blocks[1].BlockToken {
		t.Errorf("token %q", token)
	}
	set := func(f func(*ebsfake.Settings), do func() error) func() error {
		return func() error {
			old := s.Settings()
			defer s.SetSettings(old)
			changed := old
			f(&changed)
			s.SetSettings(changed)
			return do()
		}
	}
	for name, tt := range map[string]struct {
		do           func() error
		code, reason string
	}{
		"none":             {func() error { return list("snap-0f") }, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"},
		"in recycle bin":   {func() error { return list("snap-08") }, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"},
		"malformed":        {func() error { return list("snap-XY") }, "ValidationException", "INVALID_SNAPSHOT_ID"},
		"pending":          {func() error { return list("snap-04") }, "ValidationException", "INVALID_SNAPSHOT_ID"},
		"archived":         {func() error { return list("snap-05") }, "ValidationException", "INVALID_SNAPSHOT_ID"},
		"another account":  {func() error { return list("snap-06") }, "AccessDeniedException", "UNAUTHORIZED_ACCOUNT"},
		"public":           {func() error { return list("snap-07") }, "AccessDeniedException", "UNAUTHORIZED_ACCOUNT"},
		"kms":              {set(func(s *ebsfake.Settings) { s.Deny = []string{"kms:Decrypt"} }, func() error { return list("snap-03") }), "AccessDeniedException", "DEPENDENCY_ACCESS_DENIED"},
		"policy":           {set(func(s *ebsfake.Settings) { s.Deny = []string{"ebs:ListSnapshotBlocks"} }, func() error { return list("snap-01") }), "AccessDeniedException", ""},
		"token of another": {func() error { return get("snap-01", 1, token) }, "ValidationException", "INVALID_BLOCK_TOKEN"},
		"made-up token":    {func() error { return get("snap-01", 0, "AAUBAQ==") }, "ValidationException", "INVALID_BLOCK_TOKEN"},
		"other snapshot":   {func() error { return get("snap-02", 0, token) }, "ValidationException", "INVALID_BLOCK_TOKEN"},
		"expired token": {set(func(s *ebsfake.Settings) { s.BlockTokenLife = 1 }, func() error {
			page, err := e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01")})
			if err != nil {
				return err
			}
			return get("snap-01", 0, *page.Blocks[0].BlockToken)
		}), "ValidationException", "INVALID_BLOCK_TOKEN"},
		"expired page": {set(func(s *ebsfake.Settings) { s.PageTokenLife = 1 }, func() error {
			page, err := e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01"), MaxResults: aws.Int32(100)})
			if err != nil {
				return err
			}
			_, err = e.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01"), NextToken: page.NextToken})
			return err
		}), "ValidationException", "INVALID_PAGE_TOKEN"},
		"unrelated": {func() error {
			_, err := e.ListChangedBlocks(ctx, &ebs.ListChangedBlocksInput{FirstSnapshotId: aws.String("snap-03"), SecondSnapshotId: aws.String("snap-01")})
			return err
		}, "ValidationException", "UNRELATED_SNAPSHOTS"},
		"throttled": {set(func(s *ebsfake.Settings) { s.SnapshotRate = 1 }, func() error {
			var err error
			for range 5 {
				err = errors.Join(err, get("snap-01", 0, token))
			}
			return err
		}), "RequestThrottledException", "RESOURCE_LEVEL_THROTTLE"},
		"500": {set(func(s *ebsfake.Settings) { s.Faults.InternalError = 1 }, func() error { return list("snap-01") }), "InternalServerException", ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.do()
			var api smithy.APIError
			if !errors.As(err, &api) || api.ErrorCode() != tt.code {
				t.Fatalf("error %v, want %s", err, tt.code)
			}
			var v *types.ValidationException
			var a *types.AccessDeniedException
			var n *types.ResourceNotFoundException
			var r *types.RequestThrottledException
			reason := ""
			switch {
			case errors.As(err, &v):
				reason = string(v.Reason)
			case errors.As(err, &a):
				reason = string(a.Reason)
			case errors.As(err, &n):
				reason = string(n.Reason)
			case errors.As(err, &r):
				reason = string(r.Reason)
			}
			if reason != tt.reason {
				t.Errorf("reason %q, want %q", reason, tt.reason)
			}
		})
	}
}

// TestSignatures: only the right key, secret, region and service are believed.
func TestSignatures(t *testing.T) {
	s, url := start(t, ebsfake.Options{})
	twoDays(t, s)
	ctx := context.Background()
	good := ebsfake.TestCredentials
	for name, tt := range map[string]struct {
		key, secret, region string
		ebs, ec2            string
	}{
		"right":        {good.AccessKey, good.Secret, "us-east-1", "", ""},
		"wrong secret": {good.AccessKey, "secret", "us-east-1", "InvalidSignatureException", "SignatureDoesNotMatch"},
		"unknown key":  {"AKIANOBODY", good.Secret, "us-east-1", "UnrecognizedClientException", "AuthFailure"},
		"region":       {good.AccessKey, good.Secret, "eu-west-1", "InvalidSignatureException", "SignatureDoesNotMatch"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(url, tt.key, tt.secret)
			c.Region = tt.region
			_, err := ebs.NewFromConfig(c).ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-01")})
			checkCode(t, err, tt.ebs)
			_, err = ec2.NewFromConfig(c).DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}})
			checkCode(t, err, tt.ec2)
		})
	}
}

func checkCode(t *testing.T, err error, want string) {
	t.Helper()
	var api smithy.APIError
	if want == "" && err == nil || errors.As(err, &api) && api.ErrorCode() == want {
		return
	}
	t.Errorf("error %v, want %q", err, want)
}

// TestEC2 checks what leads to snapshots.
func TestEC2(t *testing.T) {
	s, url := start(t, ebsfake.Options{})
	twoDays(t, s)
	ctx := context.Background()
	_, e := clients(url)
	filter := func(name string, values ...string) ec2types.Filter {
		return ec2types.Filter{Name: &name, Values: values}
	}
	self := []string{"self"}
	for name, tt := range map[string]struct {
		in   ec2.DescribeSnapshotsInput
		want string
	}{
		"own":           {ec2.DescribeSnapshotsInput{OwnerIds: self}, "snap-01 snap-02 snap-03 snap-04 snap-05"},
		"public too":    {ec2.DescribeSnapshotsInput{}, "snap-01 snap-02 snap-03 snap-04 snap-05 snap-07"},
		"all":           {ec2.DescribeSnapshotsInput{RestorableByUserIds: []string{"all"}}, "snap-07"},
		"by id":         {ec2.DescribeSnapshotsInput{SnapshotIds: []string{"snap-02"}}, "snap-02"},
		"by volume":     {ec2.DescribeSnapshotsInput{OwnerIds: self, Filters: []ec2types.Filter{filter("volume-id", "vol-01", "vol-99"), filter("status", "completed")}}, "snap-01 snap-02 snap-05"},
		"by tag":        {ec2.DescribeSnapshotsInput{Filters: []ec2types.Filter{filter("tag:Name", "web*")}}, "snap-01 snap-02"},
		"by tag key":    {ec2.DescribeSnapshotsInput{Filters: []ec2types.Filter{filter("tag-key", "Name")}}, "snap-01 snap-02"},
		"by tier":       {ec2.DescribeSnapshotsInput{Filters: []ec2types.Filter{filter("storage-tier", "archive")}}, "snap-05"},
		"by encryption": {ec2.DescribeSnapshotsInput{Filters: []ec2types.Filter{filter("encrypted", "true")}}, "snap-03"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := e.DescribeSnapshots(ctx, &tt.in)
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, s := range out.Snapshots {
				ids = append(ids, *s.SnapshotId)
			}
			if got := strings.Join(ids, " "); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
	out, err := e.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{"snap-01"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := out.Snapshots[0]; *got.VolumeSize != 2 || got.State != "completed" || len(got.Tags) != 2 || got.StartTime.Unix() != 1793502000 ||
		*got.FullSnapshotSizeInBytes != 304<<19 || *got.OwnerId != ebsfake.TestCredentials.Account {
		t.Errorf("snap-01: %+v", got)
	}
	_, err = e.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{"snap-08"}})
	checkCode(t, err, "InvalidSnapshot.NotFound")
	_, err = e.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{"web01"}})
	checkCode(t, err, "InvalidSnapshotID.Malformed")
	bin, err := e.ListSnapshotsInRecycleBin(ctx, &ec2.ListSnapshotsInRecycleBinInput{})
	if err != nil || len(bin.Snapshots) != 1 || *bin.Snapshots[0].SnapshotId != "snap-08" {
		t.Errorf("recycle bin: %+v, %v", bin, err)
	}
	inst, err := e.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{"i-01"}})
	if err != nil || len(inst.Reservations) != 1 || len(inst.Reservations[0].Instances[0].BlockDeviceMappings) != 2 ||
		*inst.Reservations[0].Instances[0].BlockDeviceMappings[1].Ebs.VolumeId != "vol-03" {
		t.Errorf("instance: %+v, %v", inst, err)
	}
	_, err = e.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{"i-02"}})
	checkCode(t, err, "InvalidInstanceID.NotFound")

	for i := range 20 { // two and a half pages
		add(t, s, ebsfake.Snapshot{ID: "snap-aa" + string(rune('a'+i%6)) + string(rune('0'+i/6)), VolumeID: "vol-aa", VolumeSize: 1})
	}
	seen := map[string]bool{}
	pages := 0
	pager := ec2.NewDescribeSnapshotsPaginator(e, &ec2.DescribeSnapshotsInput{MaxResults: aws.Int32(8), Filters: []ec2types.Filter{filter("volume-id", "vol-aa")}})
	for pager.HasMorePages() {
		out, err := pager.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, s := range out.Snapshots {
			seen[*s.SnapshotId] = true
		}
	}
	if pages != 3 || len(seen) != 20 {
		t.Errorf("%d snapshots on %d pages, want 20 on 3", len(seen), pages)
	}
}

// TestBoto3 lets Debian's boto3, another implementation of the models, judge.
func TestBoto3(t *testing.T) {
	treetest.Need(t, "/usr/bin/python3")
	if out, err := exec.Command("/usr/bin/python3", "-c", "import boto3").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("python3-boto3: %s", out)
		}
		t.Skip("python3-boto3 is not installed")
	}
	s, url := start(t, ebsfake.Options{Admin: true})
	twoDays(t, s)
	cmd := exec.Command("/usr/bin/python3", "testdata/boto3_check.py", url)
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+ebsfake.TestCredentials.AccessKey, "AWS_SECRET_ACCESS_KEY="+ebsfake.TestCredentials.Secret,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.HasSuffix(string(out), "ok\n") {
		t.Errorf("boto3 said:\n%s", out)
	}
}
