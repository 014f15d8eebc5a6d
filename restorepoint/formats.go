package restorepoint

import (
	"yester/guestfs"
	"yester/guestfs/ext4"
	"yester/imageformats"
	"yester/imageformats/dated"
	"yester/imageformats/ewf"
	"yester/imageformats/qcow2"
	"yester/imageformats/raw"
	"yester/imageformats/rdiff"
	"yester/imageformats/vhd"
	"yester/imageformats/vhdx"
	"yester/imageformats/vmdk"
	"yester/volume"
	"yester/volume/gpt"
	"yester/volume/lvm"
	"yester/volume/mbr"
)

// What yester can read, in the order in which it is probed for. This is the one
// place that knows every reader.
var (
	imageFormats = []imageformats.Format{
		vhd.Format,
		vhdx.Format,
		vmdk.Format,
		qcow2.Format,
		ewf.Format,
		raw.Format,
	}
	repositories = []imageformats.RepositoryFormat{
		rdiff.Format,
		dated.Rsnapshot,
		dated.Folders,
	}
	schemes     = []volume.Scheme{gpt.Scheme, mbr.Scheme}
	assemblies  = []volume.Assembly{lvm.Assembly}
	filesystems = []guestfs.Format{ext4.Format}
)
