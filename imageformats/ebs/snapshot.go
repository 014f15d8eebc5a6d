package ebs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// Snapshot is what EC2 says of a snapshot.
type Snapshot struct {
	ID          string            `json:"id"`
	Volume      string            `json:"volume"`           // vol-ffffffff for a copy: see Lineage
	Device      string            `json:"device,omitempty"` // "/dev/xvda", when found through an instance
	Size        int64             `json:"size"`             // of the volume, bytes
	FullSize    int64             `json:"full_size,omitempty"`
	Start       time.Time         `json:"start"`    // the point in time that it shows
	State       string            `json:"state"`    // "pending", "completed", "error", "recoverable", "recovering"
	Progress    string            `json:"progress"` // "42%"
	Tier        string            `json:"tier"`     // "standard", "archive"
	Description string            `json:"description,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	Encrypted   bool              `json:"encrypted"`
	KMSKey      string            `json:"kms_key,omitempty"` // ARN
	Owner       string            `json:"owner"`             // account
	Public      bool              `json:"public,omitempty"`  // anyone's; known only when asked for by id
	Outpost     string            `json:"outpost,omitempty"` // ARN
	Mark        Mark              `json:"mark,omitzero"`
}

// Mark says what made a snapshot.
type Mark struct {
	By     string `json:"by"`               // MadeByDLM, MadeByBackup, or empty: a person, or a tool that leaves no mark
	Policy string `json:"policy,omitempty"` // the lifecycle policy's id, or the resource that was backed up
}

// What makes snapshots by schedule.
const (
	MadeByDLM    = "dlm"    // Amazon Data Lifecycle Manager
	MadeByBackup = "backup" // AWS Backup
)

// Tags and descriptions by which they are known (DLM user guide, "snapshot
// tags"; AWS Backup developer guide, "tags on backups").
const (
	dlmTag            = "aws:dlm:lifecycle-policy-id"
	dlmDescription    = "Created for policy: "
	backupTag         = "aws:backup:source-resource"
	backupDescription = "This snapshot is created by the AWS Backup service."
)

func markOf(description string, tags map[string]string) Mark {
	if policy, ok := tags[dlmTag]; ok {
		return Mark{MadeByDLM, policy}
	}
	if resource, ok := tags[backupTag]; ok {
		return Mark{MadeByBackup, resource}
	}
	if rest, ok := strings.CutPrefix(description, dlmDescription); ok {
		policy, _, _ := strings.Cut(rest, " ")
		return Mark{MadeByDLM, policy}
	}
	if strings.HasPrefix(description, backupDescription) {
		return Mark{By: MadeByBackup}
	}
	return Mark{}
}

// Lineage names the disk that a snapshot is one of many of: the volume, or, for a
// copy, whose volume id means nothing, what its tags tell of it.
func (s *Snapshot) Lineage() string {
	if s.Volume != "" && s.Volume != copyVolumeID {
		return s.Volume
	}
	if r := s.Tags[backupTag]; r != "" {
		return "copy-" + r
	}
	if name := s.Tags["Name"]; name != "" {
		return fmt.Sprintf("copy-%s-%s-%d", s.Owner, name, s.Size>>30)
	}
	return s.ID
}

// Problem says why a snapshot can't be read now, as far as EC2 tells; nil when
// nothing is known to stand in the way. It is an *Error.
func (s *Snapshot) Problem() error {
	e := &Error{Snapshot: s.ID}
	switch {
	case s.State == string(types.SnapshotStatePending):
		e.Kind, e.Detail, e.hint = ErrPending, s.Progress, "wait until it is completed"
	case s.State == string(types.SnapshotStateError):
		e.Kind, e.hint = ErrFailed, "use another point"
	case s.State == string(types.SnapshotStateRecoverable), s.State == string(types.SnapshotStateRecovering):
		e.Kind, e.hint = ErrRecycleBin, recycleHint(s.ID)
	case s.Tier == string(types.StorageTierArchive):
		e.Kind = ErrArchived
		e.hint = "restore it first, which takes up to 72 hours: aws ec2 restore-snapshot-tier --snapshot-id " + s.ID + " --temporary-restore-days 7"
	case s.Public:
		e.Kind, e.hint = ErrPublic, "copy it to your account: aws ec2 copy-snapshot --source-snapshot-id "+s.ID
	case s.Outpost != "":
		e.Kind, e.Detail, e.hint = ErrOutpost, s.Outpost, "copy it to the region"
	case s.Size <= 0 || s.Size > maxVolumeGiB<<30:
		e.Kind, e.Detail = ErrFailed, fmt.Sprintf("a volume of %d bytes", s.Size)
	default:
		return nil
	}
	return e
}

func recycleHint(id string) string {
	return "bring it back first: aws ec2 restore-snapshot-from-recycle-bin --snapshot-id " + id
}

// MaxCost returns what fetching the whole disk would cost at most.
func (s *Snapshot) MaxCost(r Rates) Cost {
	blocks := s.Size / BlockSize
	lists := (blocks + maxResults - 1) / maxResults
	if s.FullSize > 0 {
		blocks = min(blocks, (s.FullSize+BlockSize-1)/BlockSize)
	}
	return Cost{Blocks: blocks, Lists: lists, Rates: r}
}

// maxSnapshots ends a listing: AWS's quota is 100,000 snapshots per region.
const maxSnapshots = 1_000_000

// Snapshots returns what q means, oldest first; those that can't be read as well:
// see Problem. None at all is ErrNotFound.
func (c *Client) Snapshots(ctx context.Context, q Query) ([]Snapshot, error) {
	owners := q.Owners
	if len(owners) == 0 {
		owners = []string{"self"}
	}
	in := &ec2.DescribeSnapshotsInput{OwnerIds: owners}
	var devices map[string]string
	var what string
	switch {
	case q.Snapshot != "":
		s, err := c.snapshot(ctx, q.Snapshot)
		if err != nil {
			return nil, err
		}
		return []Snapshot{s}, nil
	case q.Volume != "":
		what = "snapshots of " + q.Volume
		in.Filters = []types.Filter{filter("volume-id", q.Volume)}
	case q.Instance != "":
		var err error
		if devices, err = c.devices(ctx, q.Instance); err != nil {
			return nil, err
		}
		if len(devices) == 0 {
			return nil, &Error{Kind: ErrNotFound, Detail: q.Instance + " has no EBS volumes"}
		}
		what = "snapshots of " + q.Instance + "'s volumes"
		in.Filters = []types.Filter{filter("volume-id", slices.Sorted(maps.Keys(devices))...)}
	case len(q.Tags) > 0:
		what = "snapshots with these tags"
		for _, key := range slices.Sorted(maps.Keys(q.Tags)) {
			in.Filters = append(in.Filters, filter("tag:"+key, q.Tags[key]...))
		}
	default:
		return nil, errors.New("ebs: an empty query")
	}
	found, err := c.describe(ctx, in)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, &Error{Kind: ErrNotFound, Detail: fmt.Sprintf("no %s in %s that %s owns", what, c.region, strings.Join(owners, " or ")),
			hint: "check the region and the account: `aws sts get-caller-identity`; owner= names another account's"}
	}
	for i := range found {
		found[i].Device = devices[found[i].Volume]
	}
	slices.SortFunc(found, func(a, b Snapshot) int {
		if d := a.Start.Compare(b.Start); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	return found, nil
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: aws.String(name), Values: values}
}

// describe lists all pages.
func (c *Client) describe(ctx context.Context, in *ec2.DescribeSnapshotsInput) ([]Snapshot, error) {
	var found []Snapshot
	if len(in.SnapshotIds) == 0 { // EC2 takes no page size along with ids
		in.MaxResults = aws.Int32(1000)
	}
	for {
		out, err := ec2Call(ctx, c, "ec2:DescribeSnapshots", func(ctx context.Context) (*ec2.DescribeSnapshotsOutput, error) {
			return c.ec2.DescribeSnapshots(ctx, in)
		})
		if err != nil {
			return nil, err
		}
		for i := range out.Snapshots {
			found = append(found, snapshotOf(&out.Snapshots[i]))
		}
		if aws.ToString(out.NextToken) == "" {
			return found, nil
		}
		if len(found) > maxSnapshots {
			return nil, &Error{Op: "ec2:DescribeSnapshots", Kind: ErrUnreachable, Detail: "the list doesn't end"}
		}
		in.NextToken = out.NextToken
	}
}

func snapshotOf(s *types.Snapshot) Snapshot {
	out := Snapshot{
		ID: aws.ToString(s.SnapshotId), Volume: aws.ToString(s.VolumeId), Size: int64(aws.ToInt32(s.VolumeSize)) << 30,
		FullSize: max(aws.ToInt64(s.FullSnapshotSizeInBytes), 0), Start: aws.ToTime(s.StartTime), State: string(s.State),
		Progress: aws.ToString(s.Progress), Tier: string(s.StorageTier), Description: aws.ToString(s.Description),
		Encrypted: aws.ToBool(s.Encrypted), KMSKey: aws.ToString(s.KmsKeyId), Owner: aws.ToString(s.OwnerId),
		Outpost: aws.ToString(s.OutpostArn),
	}
	if len(s.Tags) > 0 {
		out.Tags = make(map[string]string, len(s.Tags))
		for _, t := range s.Tags {
			out.Tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
		}
	}
	out.Mark = markOf(out.Description, out.Tags)
	return out
}

// snapshot looks one up by its id, whoever owns it.
func (c *Client) snapshot(ctx context.Context, id string) (Snapshot, error) {
	for _, in := range []*ec2.DescribeSnapshotsInput{{OwnerIds: []string{"self"}}, {}} {
		in.SnapshotIds = []string{id}
		found, err := c.describe(ctx, in)
		if errors.Is(err, ErrNotFound) {
			return Snapshot{}, c.missing(ctx, id, err)
		}
		if err != nil {
			return Snapshot{}, err
		}
		if len(found) == 0 {
			continue
		}
		s := found[0]
		if in.OwnerIds == nil {
			// Another account's that we see is shared with us, or with everyone.
			all, err := c.describe(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{id}, RestorableByUserIds: []string{"all"}})
			if err != nil {
				return Snapshot{}, err
			}
			s.Public = len(all) > 0
		}
		return s, nil
	}
	return Snapshot{}, &Error{Snapshot: id, Kind: ErrNotOwner, hint: "have its owner share the snapshot with this account, or use the owner's credentials"}
}

// missing says of a snapshot that isn't there whether it is in the Recycle Bin.
// Not being allowed to look is no error of its own.
func (c *Client) missing(ctx context.Context, id string, err error) error {
	tctx, cancel := context.WithTimeout(ctx, c.cfg.Stall)
	defer cancel()
	out, e := c.ec2.ListSnapshotsInRecycleBin(tctx, &ec2.ListSnapshotsInRecycleBinInput{SnapshotIds: []string{id}})
	if e != nil || len(out.Snapshots) == 0 {
		return err
	}
	detail := ""
	if t := aws.ToTime(out.Snapshots[0].RecycleBinExitTime); !t.IsZero() {
		detail = "until " + t.UTC().Format(time.RFC3339)
	}
	return &Error{Snapshot: id, Kind: ErrRecycleBin, Detail: detail, hint: recycleHint(id)}
}

// state asks EC2 what stands in the way of reading a snapshot; nil when it knows
// of nothing.
func (c *Client) state(ctx context.Context, id string) error {
	s, err := c.snapshot(ctx, id)
	if errors.Is(err, ErrRecycleBin) || errors.Is(err, ErrNotFound) {
		return err
	}
	if err != nil {
		return nil // not allowed to ask, or not reachable: the first error stands
	}
	return s.Problem()
}

// kmsError names the key that may not be used.
func (c *Client) kmsError(ctx context.Context, id, op string, err error) error {
	e := &Error{Snapshot: id, Op: op, Kind: ErrKMS, Err: err, Detail: "kms:Decrypt is denied"}
	y := c.causes.get("kms/" + id)
	y.once.Do(func() {
		tctx, cancel := context.WithTimeout(ctx, c.cfg.Stall)
		defer cancel()
		if s, err := c.snapshot(tctx, id); err == nil && s.KMSKey != "" {
			y.err = errors.New(s.KMSKey)
		}
	})
	key := "the snapshot's key"
	if y.err != nil {
		key = y.err.Error()
		e.Detail += " on " + key
	}
	e.hint = "allow kms:Decrypt on " + key + " to this role or user, in its policy and in the key's"
	return e
}

// devices returns the volumes of an instance with their device names.
func (c *Client) devices(ctx context.Context, id string) (map[string]string, error) {
	out, err := ec2Call(ctx, c, "ec2:DescribeInstances", func(ctx context.Context) (*ec2.DescribeInstancesOutput, error) {
		return c.ec2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
	})
	var e *Error
	if errors.As(err, &e) && e.Kind == ErrNotFound {
		e.Detail, e.hint = id, "of an instance that is gone, name a volume (ebs://vol-…) or the snapshots' tags (ebs://?tag:Name=…)"
	}
	if err != nil {
		return nil, err
	}
	devices := map[string]string{}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			for _, d := range i.BlockDeviceMappings {
				if d.Ebs != nil {
					devices[aws.ToString(d.Ebs.VolumeId)] = aws.ToString(d.DeviceName)
				}
			}
		}
	}
	return devices, nil
}

// ec2Call makes a call to EC2, whose SDK retries by itself, and translates its error.
func ec2Call[T any](ctx context.Context, c *Client, op string, call func(context.Context) (T, error)) (T, error) {
	tctx, cancel := context.WithTimeout(ctx, c.cfg.GiveUp)
	defer cancel()
	out, err := call(tctx)
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	var cred *credentialsError
	if errors.As(err, &cred) {
		return out, configError(err)
	}
	e := &Error{Op: op, Err: cause(err)}
	code := codeOf(err)
	switch {
	case credentialCodes[code]:
		e.Kind, e.hint = ErrCredentials, "the key pair is unknown to AWS, expired or wrong, or this machine's clock is: run `aws sts get-caller-identity`"
	case deniedCodes[code]:
		e.Kind, e.hint = ErrDenied, "allow "+op+" to the role or user; docs/ebs.md has the whole table"
	case strings.Contains(code, ".NotFound"), strings.Contains(code, ".Malformed"):
		e.Kind, e.hint = ErrNotFound, "is it another region's? This one is "+c.region
	case throttleCodes[code]:
		e.Kind, e.hint = ErrThrottled, "try again later"
	default:
		e.Kind, e.hint = ErrUnreachable, "check the network, the region's name and the endpoint"
	}
	return out, e
}
