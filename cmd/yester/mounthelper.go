package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// mountHelper is the name under which mount(8) calls yester for file systems of
// type yester: a link in /sbin to the binary.
const mountHelper = "mount.yester"

// mountHelperArgs turns what mount(8) passes to a helper into the arguments of
// `yester mount`: SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
// (mount(8), "External helpers"). It returns args unchanged when yester was
// called by its own name.
func mountHelperArgs(argv0 string, args []string) ([]string, error) {
	if filepath.Base(argv0) != mountHelper {
		return args, nil
	}
	var places []string
	var out []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "-o" || arg == "-t" || arg == "-N":
			i++
			if i == len(args) {
				return nil, fmt.Errorf("%s: %s needs a value", mountHelper, arg)
			}
			if arg == "-N" {
				return nil, fmt.Errorf("%s: mounting in another namespace is not supported", mountHelper)
			}
			if arg == "-o" {
				flags, err := mountOptionFlags(args[i])
				if err != nil {
					return nil, err
				}
				out = append(out, flags...)
			}
		case strings.HasPrefix(arg, "-"):
			if strings.Contains(arg, "f") { // fake: all but the mount itself
				return []string{"version"}, nil
			}
			// -s (sloppy), -n (no mtab), -v (verbose) change nothing here.
		default:
			places = append(places, arg)
		}
	}
	if len(places) != 2 {
		return nil, fmt.Errorf("%s: want SOURCE and DIR, got %q", mountHelper, places)
	}
	return slices.Concat([]string{"mount"}, out, []string{"--"}, places), nil
}

// flagOptions are the mount options that are flags of `yester mount`.
var flagOptions = map[string]string{
	"allow_other":          "--allow-other",
	"follow_symlinks":      "--follow-symlinks",
	"no_erofs":             "--no-erofs",
	"allow_changed_parent": "--allow-changed-parent",
	"idle_timeout":         "--idle-timeout",
	"machine":              "--machine",
	"at":                   "--at",
	"replay":               "--replay",
	"log_file":             "--log-file",
	"pid_file":             "--pid-file",
}

// ignoredOptions are for mount(8), systemd or the kernel, and hold in any case.
var ignoredOptions = []string{
	"ro", "nosuid", "nodev", "nosymfollow", "noexec", "exec", "defaults", "auto", "noauto", "user", "users", "owner", "group",
	"nouser", "_netdev", "nofail", "atime", "noatime", "relatime", "norelatime", "diratime", "nodiratime", "async",
	"rw", // what mount(8) passes unless it is told ro; the mount is read-only all the same
}

// mountOptionFlags turns the options of an fstab line into flags.
func mountOptionFlags(list string) ([]string, error) {
	var flags []string
	for opt := range strings.SplitSeq(list, ",") {
		name, value, hasValue := strings.Cut(opt, "=")
		flag, known := flagOptions[name]
		switch {
		case known && hasValue:
			flags = append(flags, flag+"="+value)
		case known:
			flags = append(flags, flag)
		case opt == "" || slices.Contains(ignoredOptions, opt), strings.HasPrefix(opt, "x-"), strings.HasPrefix(opt, "comment="):
		case opt == "suid", opt == "dev", opt == "symfollow":
			return nil, fmt.Errorf("%s: option %q is refused: a restore point is mounted ro,nosuid,nodev,nosymfollow", mountHelper, opt)
		default:
			return nil, fmt.Errorf("%s: unknown option %q", mountHelper, opt)
		}
	}
	return flags, nil
}
