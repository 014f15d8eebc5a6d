package guestview

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"yester/guestfs"
	"yester/internal/block"
)

// OS is the system that a root filesystem holds.
type OS struct {
	ID       string `json:"id,omitempty"`      // "debian", "rhel": as in os-release
	Name     string `json:"name,omitempty"`    // "Debian GNU/Linux 12 (bookworm)"
	Version  string `json:"version,omitempty"` // "12"
	Hostname string `json:"hostname,omitempty"`
	Arch     string `json:"arch,omitempty"` // as uname -m prints it: "x86_64"
}

// maxRelease bounds the small text files that are read, in bytes.
const maxRelease = 64 << 10

// releases are files of systems that have no os-release, or had none yet.
var releases = []struct{ path, id string }{
	{"/etc/redhat-release", "rhel"},
	{"/etc/SuSE-release", "suse"},
	{"/etc/alpine-release", "alpine"},
	{"/etc/gentoo-release", "gentoo"},
	{"/etc/slackware-version", "slackware"},
	{"/etc/arch-release", "arch"},
	{"/etc/debian_version", "debian"},
}

// DetectOS tells what system tree is the root of: by os-release(5), or else by the
// release file of a distribution; host name and architecture where they're
// found. A tree without any such file is an error matching guestfs.ErrNotExist;
// other errors come with what was found before.
func DetectOS(ctx context.Context, tree guestfs.Tree) (OS, error) {
	o, err := detectRelease(ctx, tree)
	if err != nil {
		return OS{}, fmt.Errorf("operating system: %w", err)
	}
	if o.Hostname, err = hostname(ctx, tree); err != nil {
		return o, fmt.Errorf("host name: %w", err)
	}
	if o.Arch, err = arch(ctx, tree); err != nil {
		return o, fmt.Errorf("architecture: %w", err)
	}
	return o, nil
}

func detectRelease(ctx context.Context, tree guestfs.Tree) (OS, error) {
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		text, err := readText(ctx, tree, path)
		if err != nil {
			return OS{}, err
		}
		if text == "" {
			continue
		}
		vars := shellVars(text)
		o := OS{ID: vars["ID"], Name: vars["PRETTY_NAME"], Version: vars["VERSION_ID"]}
		if o.Name == "" {
			o.Name = strings.TrimSpace(vars["NAME"] + " " + vars["VERSION"])
		}
		if o.Version == "" {
			o.Version = vars["VERSION"]
		}
		return o, nil
	}
	for _, r := range releases {
		text, err := readText(ctx, tree, r.path)
		if err != nil {
			return OS{}, err
		}
		line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
		if line = printable(line); line == "" {
			continue
		}
		o := OS{ID: r.id, Name: line}
		if word, _, ok := strings.Cut(line, " "); ok && r.id == "rhel" && word != "Red" {
			o.ID = strings.ToLower(word) // "CentOS release 6.10 (Final)"
		}
		for word := range strings.FieldsSeq(line) {
			if word[0] >= '0' && word[0] <= '9' {
				o.Version = word
				break
			}
		}
		if o.Name == o.Version {
			o.Name = r.id + " " + o.Version // debian_version and alpine-release hold nothing else
		}
		return o, nil
	}
	return OS{}, fmt.Errorf("no release file: %w", guestfs.ErrNotExist)
}

// readText returns the content of a small file; "" when there is none, or what is
// there is no file of that kind.
func readText(ctx context.Context, tree guestfs.Tree, path string) (string, error) {
	id, err := guestfs.Resolve(ctx, tree, path, true)
	if err == nil {
		var b []byte
		if b, err = guestfs.ReadFile(ctx, tree, id, maxRelease); err == nil {
			return string(b), nil
		}
	}
	if absent(err) {
		return "", nil
	}
	return "", err
}

// absent reports whether err says that a file isn't there or is of another kind,
// rather than that it can't be read.
func absent(err error) bool {
	for _, e := range []error{guestfs.ErrNotExist, guestfs.ErrNotDir, guestfs.ErrIsDir, guestfs.ErrInvalid, guestfs.ErrLoop, guestfs.ErrTooLong} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// shellVars parses assignments as os-release(5) and files in /etc/sysconfig have
// them.
func shellVars(text string) map[string]string {
	vars := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			quote := value[0]
			value = value[1 : n-1]
			if quote == '"' {
				value = strings.NewReplacer(`\"`, `"`, `\$`, `$`, "\\`", "`", `\\`, `\`).Replace(value)
			}
		}
		vars[key] = printable(value)
	}
	return vars
}

// printable leaves out control characters: what is read here goes to terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\uFFFD' {
			return -1
		}
		return r
	}, s)
}

func hostname(ctx context.Context, tree guestfs.Tree) (string, error) {
	for _, path := range []string{"/etc/hostname", "/etc/HOSTNAME"} {
		text, err := readText(ctx, tree, path)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				return printable(line), nil
			}
		}
	}
	text, err := readText(ctx, tree, "/etc/sysconfig/network") // RHEL 6
	return shellVars(text)["HOSTNAME"], err
}

// machines are the names that uname -m has for ELF's machines.
var machines = map[elf.Machine]string{
	elf.EM_X86_64: "x86_64", elf.EM_386: "i686", elf.EM_AARCH64: "aarch64", elf.EM_ARM: "arm",
	elf.EM_PPC64: "ppc64", elf.EM_PPC: "ppc", elf.EM_S390: "s390x", elf.EM_RISCV: "riscv64", elf.EM_LOONGARCH: "loongarch64",
}

// arch tells the architecture by a program's ELF header; "" when it can't.
func arch(ctx context.Context, tree guestfs.Tree) (string, error) {
	for _, path := range []string{"/bin/sh", "/usr/bin/sh", "/bin/busybox", "/sbin/init"} {
		id, err := guestfs.Resolve(ctx, tree, path, true)
		var r block.Reader
		if err == nil {
			r, err = tree.Open(ctx, id)
		}
		if absent(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		var h [20]byte // up to e_machine, which is at 18 in both classes
		if r.Size() < int64(len(h)) {
			continue
		}
		if err := block.ReadFull(ctx, r, h[:], 0); err != nil {
			return "", err
		}
		var order binary.ByteOrder = binary.LittleEndian
		if h[elf.EI_DATA] == byte(elf.ELFDATA2MSB) {
			order = binary.BigEndian
		}
		if name := machines[elf.Machine(order.Uint16(h[18:]))]; name != "" && string(h[:4]) == elf.ELFMAG {
			if name == "ppc64" && order == binary.ByteOrder(binary.LittleEndian) {
				name = "ppc64le"
			}
			return name, nil
		}
	}
	return "", nil
}
