#!/bin/sh
# Installs by apt what `make demo`, `make test` or `make bench` need and this
# machine lacks; says what. Usage: deps.sh demo|test|bench
set -eu

# package:command that tells whether it is there
demo="e2fsprogs:mkfs.ext4 fuse3:fusermount3"
test="$demo
	acl:setfacl
	attr:setfattr
	btrfs-progs:mkfs.btrfs
	cpio:cpio
	cryptsetup-bin:cryptsetup
	dosfstools:mkfs.vfat
	ewf-tools:ewfacquire
	exfatprogs:mkfs.exfat
	fdisk:sfdisk
	gdisk:sgdisk
	libiscsi-bin:iscsi-test-cu
	libvhdi-utils:vhdimount
	libvmdk-utils:vmdkmount
	lvm2:lvm
	ntfs-3g:mkntfs
	openssh-client:ssh
	openssh-server:-/usr/sbin/sshd
	parted:parted
	procps:pkill
	psmisc:fuser
	python3-boto3:-/usr/lib/python3/dist-packages/boto3
	python3-pylibacl:-/usr/share/doc/python3-pylibacl/copyright
	python3-pyxattr:-/usr/share/doc/python3-pyxattr/copyright
	python3:python3
	qemu-block-extra:-/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so
	qemu-system-common:qemu-storage-daemon
	qemu-system-x86:qemu-system-x86_64
	qemu-utils:qemu-img
	rdiff-backup:rdiff-backup
	rdiff:rdiff
	rsnapshot:rsnapshot
	rsync:rsync
	tzdata:-/usr/share/zoneinfo/Europe/Berlin
	util-linux:partx
	xfsprogs:mkfs.xfs
"

case "${1:-}" in
demo) want=$demo ;;
test) want=$test ;;
bench) want="$test openssl:openssl rdiff-backup-fs:rdiff-backup-fs time:-/usr/bin/time tgt:tgtd" ;;
*) echo "usage: $0 demo|test|bench" >&2; exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin
missing=
for entry in $want; do
	package=${entry%%:*} probe=${entry#*:}
	case $probe in
	-*) [ -e "${probe#-}" ] || missing="$missing $package" ;;
	*) command -v "$probe" >/dev/null 2>&1 || missing="$missing $package" ;;
	esac
done
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
# The guest with the iSCSI initiator is made of packages: their list must be there.
[ "${1:-}" = demo ] || apt-cache show open-iscsi >/dev/null 2>&1 || $sudo apt-get update -qq
[ -n "$missing" ] || exit 0
echo "installing by apt:$missing" >&2
[ -z "$sudo" ] || command -v sudo >/dev/null || { echo "not root, and no sudo: install these packages by hand:$missing" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
	$sudo apt-get update -qq
	$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
}
