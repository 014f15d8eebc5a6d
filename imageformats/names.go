package imageformats

import (
	"path"
	"strings"
)

// IsImageName reports whether a file of that name is likely a disk image, or
// belongs to one, going by its extension alone.
func IsImageName(name string) bool {
	switch ext := strings.ToLower(path.Ext(name)); ext {
	case ".vhd", ".avhd", ".vhdx", ".avhdx", ".vmdk", ".vmx", ".vmcx", ".qcow2", ".qcow", ".vdi",
		".raw", ".img", ".dd", ".e01", ".ex01":
		return true
	}
	return false
}
