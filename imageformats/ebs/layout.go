package ebs

import "time"

// What AWS fixes about the EBS direct APIs.
const (
	// BlockSize is the size of a block in bytes (user guide, "EBS direct APIs
	// concepts": 512 KiB). A list that says otherwise is refused.
	BlockSize = 512 << 10
	// maxVolumeGiB is the size of the largest volume (io2 Block Express: 64 TiB).
	// It bounds the block map that a snapshot's size makes us allocate.
	maxVolumeGiB = 64 << 10
	// maxResults is the largest page (ebs-2019-11-02, shape MaxResults).
	maxResults = 10000
	// maxToken is the longest token (ebs-2019-11-02, shape BlockToken: max 256).
	maxToken = 256
	// copyVolumeID is what a copied snapshot says of its volume (EC2 API
	// reference, CopySnapshot: "an arbitrary volume ID that you should not use").
	copyVolumeID = "vol-ffffffff"
)

// Numbers for whoever schedules fetches: this package starts as many requests as
// it is asked to.
const (
	// InteractiveInFlight is how many fetches to have under way for someone who
	// waits, and BulkInFlight for work in the background.
	InteractiveInFlight = 16
	BulkInFlight        = 64
	// RequestsPerSecond is how many blocks are asked for a second: AWS allows 1,000
	// for a snapshot and for an account (Service Quotas, EBS direct APIs). Who is
	// throttled all the same asks for less.
	RequestsPerSecond = 950
)

// Limits of list calls: AWS allows 50 per second and account.
const (
	listsInFlight = 8
	// backgroundListEvery leaves half of that quota to lists someone waits for.
	backgroundListEvery = 40 * time.Millisecond
	// maxEmptyPages in a row, each with a NextToken, end a listing: a page stands
	// for at least a part of the volume, so that no volume has as many.
	maxEmptyPages = 10000
)

// regionBlocks is the unit in which the map is listed, in which tokens are kept,
// and in which snapshots are compared: 4 GiB of the volume. One page holds a
// region that is written to the last block.
const regionBlocks = 8192
