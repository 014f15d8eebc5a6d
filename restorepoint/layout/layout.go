// Package layout reads what backup products and hypervisors keep beside their disk
// images: configuration files, lists of snapshots, the names of files and folders.
// Nothing in it opens a file; what it returns of names and paths comes from the
// files and is not to be trusted: restorepoint finds them inside the source.
package layout

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"yester/internal/ondisk"
)

// MaxText bounds the size of a configuration file that is read, bytes: real ones
// take a few kilobytes, those of machines with long notes and many snapshots some
// hundred.
const MaxText = 4 << 20

// maxDisks bounds the disks of a machine: the most that VMware allows is 256 (64 on
// each of 4 controllers); others allow fewer.
const maxDisks = 1024

// Disk is a disk of a machine by its configuration.
type Disk struct {
	// Node is where it is attached: "scsi0:0", "vda", "ide1:0".
	Node string
	// File is the image's file as the configuration has it: a name, or a path on
	// the host where the machine ran.
	File string
	// Field names the place in the configuration for messages.
	Field string
}

// maxName bounds a machine's or a disk's name: what a file name can hold.
const maxName = 255

// SafeName makes of a name that a file gives one that can be a folder's name; the
// empty string when nothing is left of it.
func SafeName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r == '/' || unicode.IsControl(r) {
			return '-'
		}
		return r
	}, strings.ToValidUTF8(name, "\uFFFD"))
	name = strings.TrimSpace(name)
	for len(name) > maxName {
		_, n := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-n]
	}
	if strings.Trim(name, ".") == "" {
		return ""
	}
	return name
}

// corrupt is an error about a field of a configuration file.
func corrupt(format, field, msg string, args ...any) error {
	return fmt.Errorf("%s: %s: %s: %w", format, field, fmt.Sprintf(msg, args...), ondisk.ErrCorrupt)
}
