package layout

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"yester/internal/nametime"
)

// SnapshotHolders are the folders in which storage systems show their snapshots: in
// the root of a volume, or in every folder of it, and often hidden from listings.
// NetApp ONTAP shows .snapshot to NFS clients and ~snapshot to SMB clients
// ("Logical storage management", access Snapshot copies); ZFS shows .zfs/snapshot
// (zfsprops(7), snapdir).
var SnapshotHolders = []string{".snapshot", "~snapshot", ".zfs/snapshot"}

// IsSnapshotHolder reports whether a folder of that path is one of SnapshotHolders,
// or leads to one.
func IsSnapshotHolder(name string) bool {
	base := path.Base(name)
	return base == ".snapshot" || base == "~snapshot" || base == ".zfs"
}

// StorageSnapshot is what the name of a storage system's snapshot tells.
type StorageSnapshot struct {
	Time    time.Time // zero when there is none in the name
	Product string    // "NetApp", "NetApp VSC", "ZFS"
	// Job is the backup job that has made it, where the name has it.
	Job string
	// VSC tells a snapshot that was made by NetApp's Virtual Storage Console (or
	// its forerunner SMVI): it is taken while VMware snapshots of the machines
	// exist.
	VSC bool
}

// vscName is the name that VSC gives: the job's, and when it ran, or "recent" for
// the newest of the job's.
var vscName = regexp.MustCompile(`^smvi_{1,2}(.*?)_((?:19|20)\d{12}|recent)$`)

// ParseStorageSnapshot reads the name of a snapshot that lies in holder.
func ParseStorageSnapshot(holder, name string, loc *time.Location) StorageSnapshot {
	s := StorageSnapshot{Product: "NetApp"}
	if strings.HasSuffix(holder, ".zfs/snapshot") {
		s.Product = "ZFS"
	}
	if m := vscName.FindStringSubmatch(name); m != nil {
		s.Product, s.Job, s.VSC = "NetApp VSC", m[1], true
	}
	s.Time, _, _ = nametime.Find(name, loc)
	return s
}

// String describes the snapshot called name.
func (s *StorageSnapshot) String(name string) string {
	if s.Job != "" {
		return fmt.Sprintf("%s job %s, storage snapshot %s", s.Product, s.Job, name)
	}
	return fmt.Sprintf("%s, storage snapshot %s", s.Product, name)
}
