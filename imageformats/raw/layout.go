package raw

// magic is a run of bytes by which a disk or volume is known.
type magic struct {
	off   int64
	bytes string
	name  string // what it says is there
}

// Partition tables come first: a disk that has one is spoken of by it.
var partitioned = []magic{
	{512, "EFI PART", "gpt"},   // UEFI Specification 2.10, 5.3.2: LBA 1 of 512 bytes
	{4096, "EFI PART", "gpt"},  // and of 4096
	{512, "PM\x00\x00", "apm"}, // Inside Macintosh: Devices, chapter 3, Partition: pmSig, pmSigPad
}

// volumes are filesystems and volume managers, which may fill a whole disk.
var volumes = []magic{
	{0, "XFSB", "xfs"},                  // fs/xfs/libxfs/xfs_format.h, XFS_SB_MAGIC
	{3, "NTFS    ", "ntfs"},             // fs/ntfs3/ntfs.h, NTFS_BOOT.system_id
	{3, "EXFAT   ", "exfat"},            // exFAT File System Specification, 3.1.2
	{3, "-FVE-FS-", "bitlocker"},        // libbde, "BitLocker Drive Encryption (BDE) format", volume header
	{3, "ReFS\x00\x00\x00\x00", "refs"}, // libfsrefs, "Resilient File System (ReFS)", volume header
	{0, "LUKS\xba\xbe", "luks"},         // LUKS On-Disk Format 1.2.3, 2.1; LUKS2 On-Disk Format 1.1.2, 2.1
	{512, "LABELONE", "lvm2"},           // lvm2 lib/label/label.h, LABEL_ID: in one of the first four sectors
	{0, "LABELONE", "lvm2"},             //
	{1024, "LABELONE", "lvm2"},          //
	{1536, "LABELONE", "lvm2"},          //
	{0, "hsqs", "squashfs"},             // fs/squashfs/squashfs_fs.h, SQUASHFS_MAGIC
	{1024, "\xe2\xe1\xf5\xe0", "erofs"}, // fs/erofs/erofs_fs.h, EROFS_SUPER_MAGIC_V1
	{1024, "\x10\x20\xf5\xf2", "f2fs"},  // include/uapi/linux/magic.h, F2FS_SUPER_MAGIC
	{1024, "H+\x00\x04", "hfsplus"},     // Technical Note TN1150, Volume Header, version 4
	{1024, "HX\x00\x05", "hfsplus"},     // same, HFSX, version 5
	{32, "NXSB", "apfs"},                // Apple File System Reference, nx_superblock_t
	{0x438, "\x53\xef", "ext"},          // fs/ext4/ext4.h, EXT4_SUPER_MAGIC: s_magic at 1024+56
	{4096, "\xfc\x4e\x2b\xa9", "md"},    // Linux md_p.h, MD_SB_MAGIC: metadata 1.2
	{0, "\xfc\x4e\x2b\xa9", "md"},       // same, 1.1
	{0x8001, "CD001", "iso9660"},        // ECMA-119, 8.1.2: volume descriptor in sector 16
	{0x8001, "NSR02", "udf"},            // ECMA-167 3/9.1
	{0x8001, "NSR03", "udf"},            //
	{0x8001, "BEA01", "udf"},            // ECMA-167 2/9.2
	{0x10040, "_BHRfS_M", "btrfs"},      // fs/btrfs/ctree.h, BTRFS_MAGIC: superblock at 64 KiB
	{0x10034, "ReIsEr", "reiserfs"},     // fs/reiserfs/reiserfs.h, REISERFS_DISK_OFFSET_IN_BYTES + s_magic
	{4096 - 10, "SWAPSPACE2", "swap"},   // include/linux/swap.h, end of the first page
	{0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache"}, // include/uapi/linux/bcache.h
	{82, "FAT32   ", "fat"}, // Microsoft FAT Specification, 3.3: BS_FilSysType
	{54, "FAT16   ", "fat"}, // same, 3.2
	{54, "FAT12   ", "fat"}, //
	{54, "FAT     ", "fat"}, //
}

// bootSignature ends the first sector of a disk with an MBR, and of most boot
// sectors: 55 AA at 510 (UEFI Specification 2.10, 5.2.1).
var bootSignature = magic{510, "\x55\xaa", "mbr"}

// windows are the parts of a disk that hold all magics, bytes.
var windows = []struct{ off, n int64 }{
	{0, 0x1200},     // up to bcache's and md's at 4 KiB
	{0x8000, 0x200}, // volume descriptors of ISO 9660 and UDF
	{0x10000, 0x80}, // Btrfs, ReiserFS
}
