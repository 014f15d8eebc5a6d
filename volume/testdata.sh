#!/bin/sh
# Makes the small disks that the tests of mbr and gpt start from, with util-linux
# and gptfdisk. Run as root in this folder: 4096-byte sectors take a loop device.
set -eu
export LC_ALL=C.UTF-8 # or sfdisk drops names
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# disk NAME SECTOR SIZE: reads an sfdisk script
disk() {
	rm -f "$tmp/d"
	truncate -s "$3" "$tmp/d"
	loop=$(losetup --find --show --sector-size "$2" "$tmp/d")
	sfdisk --quiet --no-reread "$loop" || { losetup --detach "$loop"; exit 1; }
	losetup --detach "$loop"
	save "$1"
}
save() { gzip -9nc "$tmp/d" >"$1.gz"; }

disk gpt/testdata/gpt512 512 128K <<'S'
label: gpt
label-id: 8D2A3C2E-7A0F-4B64-9D26-0123456789AB
first-lba: 34
1: start=40, size=8, name="größe 日本", uuid=11111111-2222-3333-4444-555555555555
4: start=64, size=8, type=U, attrs=LegacyBIOSBootable, uuid=44444444-2222-3333-4444-555555555555
3: start=80, size=16, uuid=33333333-2222-3333-4444-555555555555
S
sgdisk --hybrid=1:3 "$tmp/d" >/dev/null
save gpt/testdata/hybrid512
disk gpt/testdata/gpt4096 4096 256K <<'S'
label: gpt
label-id: 8D2A3C2E-7A0F-4B64-9D26-0123456789AB
first-lba: 6
1: start=8, size=8, name="root", uuid=11111111-2222-3333-4444-555555555555
S
disk gpt/testdata/short512 512 64K <<'S'
label: gpt
label-id: 8D2A3C2E-7A0F-4B64-9D26-0123456789AB
table-length: 4
first-lba: 34
2: start=40, size=8, name="two", uuid=22222222-2222-3333-4444-555555555555
S
disk mbr/testdata/primary512 512 64K <<'S'
label: dos
label-id: 0x1a2b3c4d
1: start=8, size=8, bootable
3: start=32, size=16, type=7
S
disk mbr/testdata/logical512 512 64K <<'S'
label: dos
label-id: 0x1a2b3c4d
1: start=1, size=7
2: start=8, size=64, type=5
3: start=80, size=16, type=7
5: start=10, size=8
6: start=24, size=8, type=82
7: start=40, size=16
S
disk mbr/testdata/logical4096 4096 256K <<'S'
label: dos
label-id: 0x1a2b3c4d
2: start=8, size=40, type=f
5: start=10, size=8
6: start=24, size=8
S
