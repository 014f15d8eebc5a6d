package restorepoint

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	"yester/internal/nametime"
	"yester/internal/ondisk"
	"yester/restorepoint/layout"
)

// windowsBackup finds what Windows Server Backup (wbadmin, "system image") leaves:
// each volume is an image of its own, and the folder's name is when it ran, in UTC
// (it is the version that `wbadmin get versions` shows).
func (sv *survey) windowsBackup() {
	root := filepath.Base(sv.src.dir.Path())
	for _, f := range sv.unclaimed() {
		w, ok := layout.ParseWindowsBackup(f.name, root)
		if !ok {
			continue
		}
		t, _, _ := nametime.Find(w.Folder, time.UTC)
		st := diskState{
			machine: w.Host, place: path.Dir(path.Dir(sv.scope.rel(w.Dir))), disk: w.Volume, image: f,
			time: t, from: FromName, group: w.Dir,
			layout: LayoutWindowsBackup, consistency: Quiesced, provenance: "Windows Server Backup",
			notes: []string{"Windows Server Backup keeps older versions of these images in shadow copies (VSS) of the volume that they lie on; these are not read"},
		}
		if p := sv.scope.provenance(); p != "" {
			st.provenance += ", " + p
		}
		sv.add(st)
	}
}

// proxmox finds the disks of Proxmox VE's machines by their names.
func (sv *survey) proxmox() {
	configs := make(map[string]layout.ProxmoxConfig)
	for _, name := range sv.scope.named(".conf") {
		vmid := strings.TrimSuffix(path.Base(name), ".conf")
		if strings.Trim(vmid, "0123456789") != "" {
			continue
		}
		c, err := parseFile(sv, name, layout.ParseProxmoxConfig)
		if err != nil {
			sv.ignore(name, "", err)
			continue
		}
		configs[vmid] = c
	}
	for _, f := range sv.unclaimed() {
		p, ok := layout.ParseProxmox(f.name)
		if !ok {
			continue
		}
		if p.Auxiliary != "" {
			sv.claimed[f] = true
			sv.ignore(f.name, p.Auxiliary, nil)
			continue
		}
		c := configs[p.VMID]
		st := diskState{machine: layout.SafeName(c.Name), disk: p.Disk, layout: LayoutProxmox, image: f, place: p.VMID, rank: len(c.Disks), provenance: "Proxmox VE machine " + p.VMID}
		if st.machine == "" {
			st.machine = "vm-" + p.VMID
		}
		for i, d := range c.Disks {
			if path.Base(d.File) == path.Base(f.name) {
				st.disk, st.rank = d.Node, i
			}
		}
		sv.addLive(st)
	}
}

// libvirt finds machines by their descriptions.
func (sv *survey) libvirt() {
	for _, name := range sv.scope.named(".xml") {
		d, err := parseFile(sv, name, func(data []byte) (d layout.Domain, err error) {
			d, ok, err := layout.ParseDomain(data)
			if !ok {
				return d, errOtherXML
			}
			return d, err
		})
		if err != nil {
			if !isOtherXML(err) {
				sv.ignore(name, "", err)
			}
			continue
		}
		machine := layout.SafeName(d.Name)
		if machine == "" {
			machine = strings.TrimSuffix(path.Base(name), ".xml")
		}
		sv.domain(name, machine, d.Disks)
	}
}

// domain adds the states of a libvirt machine's disks.
func (sv *survey) domain(name, machine string, disks []layout.Disk) {
	images := make([]*imageFile, len(disks))
	for i, disk := range disks {
		images[i] = sv.find(path.Dir(name), disk.File)
	}
	for i, disk := range disks {
		st := diskState{
			machine: machine, place: undatedDir(sv.scope.rel(name), sv.src.opt.Location), config: name,
			disk: diskName(disk.Node), rank: i, layout: LayoutLibvirt, provenance: "libvirt domain " + machine,
		}
		if st.disk == "" {
			st.disk = fmt.Sprintf("disk%d", i)
		}
		if st.image = images[i]; st.image != nil {
			sv.addChain(st)
			continue
		}
		st.file = path.Join(path.Dir(name), path.Base(disk.File))
		st.problem = missing(name, disk)
		// Beside the others, which can't be opened without it.
		if st.time, st.from = sv.stateTime(name, images...); st.time.IsZero() {
			st.time = sv.scope.files[name].ModTime.UTC()
		}
		if sv.scope.name != "" {
			st.name, st.consistency = sv.scope.name, CrashConsistent
			st.provenance += ", " + sv.scope.provenance()
		}
		sv.add(st)
	}
}

// addLive adds the state that st's image is in, and those of the snapshots inside
// it.
func (sv *survey) addLive(st diskState) {
	f := st.image
	st.frozen = sv.children[f] > 0
	if st.frozen && sv.scope.name != "" {
		// It has not changed since the next image was laid over it, whenever the
		// storage snapshot was taken.
		st.time, st.from = sv.src.ownTime(f)
	} else {
		st.time, st.from = sv.stateTime(f.name, f)
	}
	if sv.scope.name != "" {
		st.provenance += ", " + sv.scope.provenance()
		if !st.frozen {
			st.name, st.consistency = sv.scope.name, CrashConsistent
		}
	}
	for i := range f.info.Snapshots {
		sv.add(st.ofSnapshot(&f.info.Snapshots[i]))
	}
	sv.add(st)
}

// addChain is addLive for st's image and for those that it is based on, which are
// the states when the next one was laid over them; but not for what several
// machines are made of.
func (sv *survey) addChain(st diskState) {
	for i, f := range st.image.chain() {
		if i > 0 && sv.children[f] > 1 {
			return
		}
		of := st
		of.image = f
		sv.addLive(of)
	}
}

// vzdump names an archive of Proxmox VE, which nothing here reads.
func vzdump(name string) error {
	if what, ok := layout.Vzdump(name); ok {
		return fmt.Errorf("%s: %w (`vma extract` makes disks of it that can be read)", what, ondisk.ErrUnsupported)
	}
	return nil
}
