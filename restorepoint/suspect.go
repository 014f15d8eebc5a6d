package restorepoint

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	"yester/imageformats"
	"yester/internal/ondisk"
)

// containers are the formats that begin or end with a signature, by the
// extensions that files of theirs have. Raw disks have none.
var containers = map[string]string{
	".vhd": "VHD", ".avhd": "VHD", ".vhdx": "VHDX", ".avhdx": "VHDX", ".vmdk": "VMDK", ".qcow2": "QCOW2", ".e01": "EWF",
}

// plainVMDK matches the VMDK files that have no signature (Virtual Disk Format 5.0,
// "Extent description"; VDDK Programming Guide, "Changed block tracking"): plain
// extents, changed blocks, pointers to raw devices.
var plainVMDK = regexp.MustCompile(`(?i)-(?:flat|f\d{3}|ctk|rdmp)\.vmdk$`)

// suspectAll warns of those ignored files that are containers by their names.
// It is known by now which of them are extents of others.
func (s *Source) suspectAll(ignored []Ignored) {
	for i := range ignored {
		of := &ignored[i]
		if _, ok := s.probed[of.Name]; !ok || of.Damaged || of.Err == nil {
			continue
		}
		if err, damaged := s.suspect(of.Name, of.Err); damaged {
			of.Err, of.Reason, of.Damaged = err, err.Error(), true
		}
	}
}

// suspect returns err, which says why the file is no image, or a clearer error when
// the file is called like an image that has a signature: it may be a damaged one.
func (s *Source) suspect(name string, err error) (clearer error, damaged bool) {
	format, ok := containers[strings.ToLower(path.Ext(name))]
	switch {
	case !ok || !errors.Is(err, ondisk.ErrFormat) || errors.Is(err, imageformats.ErrPart):
		return err, false
	case plainVMDK.MatchString(name), strings.HasPrefix(path.Base(name), "._"): // what macOS keeps beside a file
		return err, false
	case s.probed[name].versions[0].Size == 0:
		return err, false
	}
	return fmt.Errorf("named like a %s image, but not recognised as one by its content: damaged? (%w)", format, err), true
}
