package ext4

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/treetest"
)

// hostFile is an image file as a block.Reader that knows where its bytes lie.
type hostFile struct {
	*os.File
	size int64
}

func (h hostFile) Size() int64 { return h.size }

func (h hostFile) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	return block.Extent{Len: min(n, h.size-off), File: h.File, Off: off}, nil
}

func openHost(t testing.TB, path string) hostFile {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return hostFile{f, st.Size()}
}

func openImage(t testing.TB, path string) guestfs.Tree {
	t.Helper()
	tree, err := guestfs.Open(context.Background(), openHost(t, path), guestfs.Options{Replay: guestfs.ReplayOn}, Format)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

// mkfs makes an image of size (as truncate(1) takes it) with mkfs.ext4's args.
func mkfs(t testing.TB, size string, args ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	treetest.Run(t, "truncate", "-s", size, image)
	treetest.Run(t, "mkfs.ext4", append(append([]string{"-q", "-F", "-E", "nodiscard"}, args...), image)...)
	return image
}

// hostManifest is what the kernel shows of image, mounted read-only.
func hostManifest(t testing.TB, image string, options string) treetest.Manifest {
	t.Helper()
	dir, unmount := treetest.Mount(t, image, "ext4", options)
	m, err := treetest.Host(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	unmount()
	return m
}

// TestKernel fills filesystems of many kinds through the kernel's own driver and
// compares what this reader shows with what the kernel shows.
func TestKernel(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "mount", "truncate", "e2fsck")
	for _, c := range []struct {
		name, fsType, args string
	}{
		{"default", "ext4", ""},
		{"1k", "ext4", "-b 1024"},
		{"2k", "ext4", "-b 2048"},
		{"ext2", "ext2", "-t ext2"},
		{"ext2-1k", "ext2", "-t ext2 -b 1024 -I 128"},
		{"ext3", "ext3", "-t ext3"},
		{"ext3-1k", "ext3", "-t ext3 -b 1024"},
		{"no-extent", "ext4", "-O ^extent,^64bit -b 1024"},
		{"no-journal", "ext4", "-O ^has_journal"},
		{"bigalloc", "ext4", "-O bigalloc -C 16384"},
		{"bigalloc-1k", "ext4", "-O bigalloc -b 1024 -C 8192"},
		{"meta-bg", "ext4", "-O meta_bg,^resize_inode -b 1024 -g 1024"},
		{"meta-bg-64", "ext4", "-O meta_bg,64bit,^resize_inode,metadata_csum -b 1024 -g 512"},
		{"inline", "ext4", "-O inline_data"},
		{"inline-1k", "ext4", "-O inline_data -b 1024 -I 1024"},
		{"inline-512", "ext4", "-O inline_data -I 512"},
		{"ea-inode", "ext4", "-O ea_inode"},
		{"ea-inode-nocsum", "ext4", "-O ea_inode,^metadata_csum -I 128"},
		{"32bit", "ext4", "-O ^64bit"},
		{"no-csum", "ext4", "-O ^metadata_csum,uninit_bg"},
		{"no-csum-at-all", "ext4", "-O ^metadata_csum,^uninit_bg"},
		{"csum-seed", "ext4", "-O metadata_csum_seed"},
		{"no-flex", "ext4", "-O ^flex_bg"},
		{"inode-128", "ext4", "-I 128"},
		{"inode-1024", "ext4", "-I 1024"},
		{"large-dir", "ext4", "-O large_dir -b 1024"},
		{"no-index", "ext4", "-O ^dir_index"},
		{"no-filetype", "ext4", "-O ^filetype"},
		{"sparse-super2", "ext4", "-O sparse_super2,^resize_inode"},
		{"quota", "ext4", "-I 256"},
		{"huge-file-off", "ext4", "-O ^huge_file,^dir_nlink,^extra_isize"},
		{"mmp-verity-encrypt", "ext4", "-O mmp,verity,encrypt,stable_inodes"},
		{"orphan-file", "ext4", "-O orphan_file"},
		{"fast-commit", "ext4", "-O fast_commit"},
		{"legacy-hash", "ext4", "-b 1024 -E hash_alg=legacy"},
		{"tea-hash", "ext4", "-b 1024 -E hash_alg=tea"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := strings.Fields(c.args)
			if i := strings.Index(c.args, "hash_alg="); i >= 0 {
				args = args[:2] // mkfs has no option for it: see below
			}
			image := mkfs(t, "160M", append(args, "-N", "8000")...)
			if i := strings.Index(c.args, "hash_alg="); i >= 0 {
				treetest.Run(t, "tune2fs", "-E", c.args[i:], image)
			}
			dir, unmount := treetest.Mount(t, image, "ext4", "")
			treetest.Populate(t, dir)
			unmount()
			if c.name == "quota" { // which this kernel may be unable to write
				treetest.Run(t, "tune2fs", "-O", "quota,project", image)
			}
			treetest.Run(t, "e2fsck", "-fn", image)
			want := hostManifest(t, image, "ro")
			tree := openImage(t, image)
			treetest.Compare(t, tree, want)
			treetest.Check(t, tree, treetest.Options{})
			if info := tree.Info(); info.Type != c.fsType {
				t.Errorf("type %q, want %q", info.Type, c.fsType)
			}
		})
	}
}
