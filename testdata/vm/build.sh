#!/bin/sh
# build.sh DIR: make DIR/vmlinuz and DIR/initramfs.gz, a Linux guest with an iSCSI
# initiator, out of Debian's own packages. Nothing is installed on this host: the
# packages are downloaded into DIR/debs and unpacked. A second call with the same
# DIR does nothing but renew the init script.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
mkdir -p "$dir/debs" "$dir/stage"
cd "$dir"

# Modules the guest loads, by name; their dependencies are found.
modules="virtio_pci virtio_net iscsi_tcp sd_mod ext4 xfs fuse crc32c_generic crc32c-intel"
# Programs that are linked with libraries.
programs="iscsid iscsiadm ntfs-3g"

if [ ! -f stage/.done ]; then
	kernel=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1)
	packages="$kernel busybox-static open-iscsi ntfs-3g libntfs-3g89 libisns0 libkmod2 libmount1 libopeniscsiusr
		libssl3 libsystemd0 libblkid1 libselinux1 libpcre2-8-0 libzstd1 liblzma5 liblz4-1 libcap2 libgcrypt20
		libgpg-error0 libgnutls30 libp11-kit0 libidn2-0 libunistring2 libtasn1-6 libnettle8 libhogweed6 libgmp10
		libffi8 libfuse2 libc6 util-linux"
	# shellcheck disable=SC2086
	(cd debs && apt-get -q download $packages)
	for d in debs/*.deb; do dpkg-deb -x "$d" stage; done
	touch stage/.done
fi
busybox=$dir/stage/bin/busybox
version=$(basename "$(ls -d stage/lib/modules/*)")
cp "stage/boot/vmlinuz-$version" vmlinuz
[ -f "stage/lib/modules/$version/modules.dep" ] || "$busybox" depmod -b "$dir/stage" "$version"

root=$dir/root
rm -rf "$root"
mkdir -p "$root/bin" "$root/sbin" "$root/usr/bin" "$root/usr/sbin" "$root/lib/modules/$version" "$root/lib64" "$root/etc/iscsi" \
	"$root/proc" "$root/sys" "$root/dev" "$root/run/lock" "$root/var/lock" "$root/tmp" "$root/mnt"
cp "$busybox" "$root/bin/busybox"

# The modules and what they need.
deps=stage/lib/modules/$version/modules.dep
need() {
	line=$(grep "/$1\.ko[^/]*:" "$deps" | head -n 1) || { echo "build.sh: no module $1" >&2; return 0; }
	for f in ${line%%:*} ${line#*:}; do
		mkdir -p "$root/lib/modules/$version/$(dirname "$f")"
		cp "stage/lib/modules/$version/$f" "$root/lib/modules/$version/$f"
	done
}
for m in $modules; do need "$m"; done
"$busybox" depmod -b "$root" "$version"

# The programs and their libraries, all from the packages.
libs=$dir/stage/lib/x86_64-linux-gnu:$dir/stage/usr/lib/x86_64-linux-gnu
cp stage/lib64/ld-linux-x86-64.so.2 "$root/lib64/" 2>/dev/null || cp stage/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$root/lib64/"
mkdir -p "$root/lib/x86_64-linux-gnu"
for p in $programs; do
	f=$(find stage/bin stage/sbin stage/usr/bin stage/usr/sbin -name "$p" -type f | head -n 1)
	[ -n "$f" ] || { echo "build.sh: no program $p" >&2; exit 1; }
	cp "$f" "$root/bin/$p"
	"$root/lib64/ld-linux-x86-64.so.2" --library-path "$libs" --list "$f" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' |
		while read -r l; do cp -L "$l" "$root/lib/x86_64-linux-gnu/"; done
done
cp "$here/init" "$root/init"
chmod 755 "$root/init"
(cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null | gzip -1) > initramfs.gz.new
mv initramfs.gz.new initramfs.gz
