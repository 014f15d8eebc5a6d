#!/bin/sh
# Shows yester at work, from nothing: a real ext4 disk, three dated states of it in
# a chain of VHD images, a file that was deleted between the second and the third,
# and that file copied back. `make demo` runs it, with yester in the PATH.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
GO=${GO:-go}

work=$(mktemp -d "${TMPDIR:-/tmp}/yester-demo.XXXXXX")
mnt=mnt
mounted=
cleanup() {
	cd "$work"
	[ -z "$mounted" ] || yester umount "$mnt" || yester umount --lazy "$mnt" || true
	cd / && rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() {
	printf '$ %s\n' "$*"
	"$@" 2>&1
}

for tool in mkfs.ext4 debugfs yester "$GO"; do
	command -v "$tool" >/dev/null || {
		echo "demo: $tool is missing; \`make demo\` installs what it can" >&2
		exit 1
	}
done

"$GO" build -o "$work/mkchain" ./testdata/mkchain
PATH=$PATH:$work
cd "$work"

say "A machine's disk: 64 MiB of ext4 with a small Linux system and a report in it"
tree=tree
mkdir -p "$tree/etc" "$tree/usr/bin" "$tree/home/ada" backups/web01 "$mnt" restored
printf 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID=12\n' >"$tree/etc/os-release"
echo web01 >"$tree/etc/hostname"
printf 'root:x:0:0::/root:/bin/sh\n' >"$tree/etc/passwd"
echo 'UUID=6d2f1c7e-54c1-4b43-9a52-0d8e6d0c1f10 / ext4 defaults 0 1' >"$tree/etc/fstab"
printf 'Quarterly report\n\nfirst draft\n' >"$tree/home/ada/report.txt"
seq 1 200000 >"$tree/home/ada/numbers.txt"
truncate -s 64M monday.raw
run mkfs.ext4 -q -F -L root -U 6d2f1c7e-54c1-4b43-9a52-0d8e6d0c1f10 -d "$tree" monday.raw

say "On Tuesday the report is finished; on Wednesday it gets deleted"
printf 'Quarterly report\n\nfinished, after two more nights\n' >report.txt
printf 'rm /home/ada/report.txt\nwrite report.txt /home/ada/report.txt\n' >edit
cp monday.raw tuesday.raw
run debugfs -w -f edit tuesday.raw
cp tuesday.raw wednesday.raw
run debugfs -w -R 'rm /home/ada/report.txt' wednesday.raw

say "The hypervisor's backup keeps each night as a VHD: a base and two differences"
run mkchain -o backups/web01 -name web01 \
	monday.raw@2026-11-16T22:00:00Z tuesday.raw@2026-11-17T22:00:00Z wednesday.raw@2026-11-18T22:00:00Z
rm monday.raw tuesday.raw wednesday.raw
before=$(cat backups/web01/* | sha256sum)

say "Its restore points"
run yester points backups/web01
run yester inspect backups/web01

say "The newest point doesn't have the report any more"
run yester ls -l backups/web01 /home/ada

say "The points as a directory tree"
run yester mount backups/web01 "$mnt"
mounted=yes
run ls "$mnt"
run ls "$mnt/latest/" "$mnt/latest/files/home/ada"
if [ -e "$mnt/latest/files/home/ada/report.txt" ]; then
	echo "demo: the newest point still has the report" >&2
	exit 1
fi
run ls -l "$mnt/2026-11-17T22-00-00Z/files/home/ada"
run cat "$mnt/2026-11-17T22-00-00Z/files/home/ada/report.txt"
run cmp "$mnt/2026-11-17T22-00-00Z/files/home/ada/report.txt" report.txt
run cmp "$mnt/latest/files/home/ada/numbers.txt" "$tree/home/ada/numbers.txt"
run yester status
run yester umount "$mnt"
mounted=

say "The report as of Tuesday midnight, copied back"
run yester cp backups/web01 /home/ada/report.txt restored --at 2026-11-17T23:59:00Z
run ls -l restored
run cmp restored/report.txt report.txt

say "The source is as it was"
after=$(cat backups/web01/* | sha256sum)
[ "$before" = "$after" ] || {
	echo "demo: the source was changed" >&2
	exit 1
}
echo "$after"

printf '\nyester demo: the deleted file was found in an older restore point and copied back. All went well.\n'
