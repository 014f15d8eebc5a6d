package layout

import (
	"path"
	"regexp"
	"strconv"
	"strings"
)

// Proxmox is what the name of a Proxmox VE disk tells (pve-storage, "File naming
// conventions": vm-<VMID>-<NAME>, base-<VMID>-<NAME> of templates).
type Proxmox struct {
	VMID string
	Disk string // "disk-0"
	// Auxiliary tells what belongs to the machine but is no disk of its system: a
	// cloud-init drive, a saved memory, the EFI variables are disks of their own.
	Auxiliary string
}

var proxmoxName = regexp.MustCompile(`^(?:vm|base)-([0-9]{1,9})-((?:disk|state|cloudinit)[^/]*)\.(?:qcow2|raw|vmdk)$`)

// ParseProxmox reads the path of an image.
func ParseProxmox(name string) (p Proxmox, ok bool) {
	m := proxmoxName.FindStringSubmatch(path.Base(name))
	if m == nil {
		return p, false
	}
	p = Proxmox{VMID: m[1], Disk: m[2]}
	switch {
	case strings.HasPrefix(p.Disk, "state"):
		p.Auxiliary = "the saved memory of virtual machine " + p.VMID
	case strings.HasPrefix(p.Disk, "cloudinit"):
		p.Auxiliary = "the cloud-init drive of virtual machine " + p.VMID
	}
	return p, true
}

var vzdumpName = regexp.MustCompile(`^vzdump-(qemu|lxc|openvz)-([0-9]{1,9})-([0-9]{4}_[0-9]{2}_[0-9]{2}-[0-9]{2}_[0-9]{2}_[0-9]{2})\.(vma|tar|tgz)(?:\.(?:zst|gz|lzo))?$`)

// Vzdump recognises an archive of Proxmox VE's backup by its name, and describes it.
func Vzdump(name string) (description string, ok bool) {
	m := vzdumpName.FindStringSubmatch(path.Base(name))
	if m == nil {
		return "", false
	}
	what := "virtual machine "
	if m[1] != "qemu" {
		what = "container "
	}
	return "Proxmox VE archive (" + m[4] + ") of " + what + m[2] + ", " + m[3], true
}

// ProxmoxConfig is what a machine's configuration file (<VMID>.conf) says.
type ProxmoxConfig struct {
	Name string
	// Disks are of the machine's present state.
	Disks []Disk
}

var proxmoxDisk = regexp.MustCompile(`^(scsi|virtio|sata|ide|efidisk|tpmstate)([0-9]{1,2}): *(.*)$`)

// ParseProxmoxConfig reads a <VMID>.conf (qm.conf(5)): lines "key: value", of which
// those behind the first "[name]" are of snapshots.
func ParseProxmoxConfig(data []byte) (c ProxmoxConfig, err error) {
	if len(data) > MaxText {
		return c, corrupt("qm.conf", "text", "%d bytes", len(data))
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			break
		}
		if name, ok := strings.CutPrefix(line, "name:"); ok {
			c.Name = strings.TrimSpace(name)
		}
		m := proxmoxDisk.FindStringSubmatch(line)
		if m == nil || strings.Contains(m[3], "media=cdrom") {
			continue
		}
		file, _, _ := strings.Cut(m[3], ",")
		if _, volume, ok := strings.Cut(file, ":"); ok { // <storage>:<volume>
			file = volume
		}
		if c.Disks = append(c.Disks, Disk{Node: m[1] + m[2], File: file, Field: m[1] + m[2]}); len(c.Disks) > maxDisks {
			return c, corrupt("qm.conf", m[1], "more than %d disks", maxDisks)
		}
	}
	return c, nil
}

// WindowsBackup is a place in what Windows Server Backup leaves:
// WindowsImageBackup/<host>/Backup <date>/<volume>.vhdx.
type WindowsBackup struct {
	Host, Folder, Volume string
	Dir                  string // of the backup, relative to the source
}

var windowsFolder = regexp.MustCompile(`^Backup [0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{6}$`)

// ParseWindowsBackup reads the path of an image. root is the name of the folder that
// the path is relative to.
func ParseWindowsBackup(name, root string) (w WindowsBackup, ok bool) {
	ext := strings.ToLower(path.Ext(name))
	dir := path.Dir(name)
	if ext != ".vhd" && ext != ".vhdx" || !windowsFolder.MatchString(path.Base(dir)) {
		return w, false
	}
	base := path.Base(name)
	w = WindowsBackup{Folder: path.Base(dir), Dir: dir, Volume: base[:len(base)-len(ext)], Host: path.Base(path.Dir(dir))}
	if w.Host == "." {
		w.Host = root
	}
	w.Host = SafeName(w.Host)
	return w, w.Host != ""
}

// azureDisk is the part behind a machine's name that calls a disk: "osdisk",
// "OsDisk_1_<id>", "datadisk-0", "disk2".
var azureDisk = regexp.MustCompile(`(?i)^(.+?)[-_. ]((?:os|data)[-_]?(?:disk|drive)?[-_]?[0-9]*|(?:disk|drive|hd|lun)[-_]?[0-9]+)((?:[-_][0-9a-f]{8,32}|[-_][0-9]{1,3})*)$`)

// SplitDisk takes the name of an image without its date apart: the machine's name
// and the disk's. certain tells a disk that nothing else is called ("web01-osdisk")
// from what may as well be the end of a machine's name ("web-data").
func SplitDisk(stem string) (machine, disk string, certain, ok bool) {
	m := azureDisk.FindStringSubmatch(stem)
	if m == nil {
		return "", "", false, false
	}
	disk = strings.ToLower(m[2])
	certain = strings.Contains(disk, "disk") || strings.Contains(disk, "drive") || strings.HasPrefix(disk, "lun")
	// A short number behind it belongs to the disk's name, an id doesn't.
	for _, more := range strings.FieldsFunc(m[3], func(r rune) bool { return r == '-' || r == '_' }) {
		if _, err := strconv.Atoi(more); err == nil && len(more) <= 3 {
			disk += "-" + more
		}
	}
	return m[1], disk, certain, true
}
