// Command yester-ebsfake serves raw images as EBS snapshots, for demonstrations
// and tests without an AWS account: the EBS direct APIs and what of EC2 leads to
// snapshots, with signatures, tokens, paging and errors as AWS's.
//
//	yester-ebsfake -latency 25ms day1.img,time=2026-11-01T03:00:00Z,tag:Name=web01 day2.img
//
// prints the environment that points the AWS SDKs and command line at it. What
// goes wrong can be changed while it runs, by PATCH /_fake/settings.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"yester/internal/ebsfake"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	if err := run(os.Args[1:], os.Stdout, os.Stderr, stop); err != nil {
		fmt.Fprintln(os.Stderr, "yester-ebsfake: error:", err)
		os.Exit(1)
	}
}

const usage = `Usage: yester-ebsfake [flags] IMAGE[,key=value…]… | DIR…

Serves raw images as snapshots, the images of a folder (*.img, *.raw) in the order
of their names. Keys: id, volume, time (RFC 3339), description, state, progress,
tier, owner, kms, tag:NAME. Without them: an id by the order, one volume per folder,
the file's modification time.

`

func run(args []string, stdout, stderr io.Writer, stop <-chan os.Signal) error {
	flags := flag.NewFlagSet("yester-ebsfake", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	var set ebsfake.Settings
	var latency time.Duration
	var instances []string
	listen := flags.String("listen", "127.0.0.1:0", "`address` to listen on")
	region := flags.String("region", "us-east-1", "the only region there is")
	settings := flags.String("settings", "", "`file` of settings in JSON, as /_fake/settings shows them")
	admin := flags.Bool("admin", true, "serve /_fake/settings and /_fake/counts")
	verbose := flags.Bool("v", false, "log errors as they are answered")
	flags.DurationVar(&latency, "latency", 0, "before each answer")
	flags.Int64Var(&set.ConnBandwidth, "conn-bandwidth", 0, "bytes/s of each connection; 0: no limit")
	flags.Int64Var(&set.AllBandwidth, "bandwidth", 0, "bytes/s of all together; 0: no limit")
	flags.IntVar(&set.PageSize, "page-size", 0, "blocks on a page at most; 0: as asked for")
	flags.Float64Var(&set.SnapshotRate, "rate", 0, "requests/s for blocks of a snapshot; 0: no limit")
	flags.Float64Var(&set.ListRate, "list-rate", 0, "list requests/s; 0: no limit")
	flags.Func("instance", "`ID=DEVICE:VOLUME[,DEVICE:VOLUME…]`: a machine; may be repeated", func(s string) error {
		instances = append(instances, s)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	set.Latency = ebsfake.Duration(latency)
	if *settings != "" {
		text, err := os.ReadFile(*settings)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, &set); err != nil {
			return fmt.Errorf("%s: %w", *settings, err)
		}
	}
	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelDebug
	}
	s := ebsfake.New(ebsfake.Options{Region: *region, Settings: set, Admin: *admin,
		Logger: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))})
	if err := addAll(s, flags.Args(), stderr); err != nil {
		return err
	}
	for _, text := range instances {
		i, err := parseInstance(text)
		if err != nil {
			return err
		}
		s.AddInstance(i)
	}
	url, err := s.Start(*listen)
	if err != nil {
		return err
	}
	for _, line := range []string{
		"AWS_ENDPOINT_URL_EBS=" + url, "AWS_ENDPOINT_URL_EC2=" + url, "AWS_REGION=" + *region,
		"AWS_ACCESS_KEY_ID=" + ebsfake.TestCredentials.AccessKey, "AWS_SECRET_ACCESS_KEY=" + ebsfake.TestCredentials.Secret,
	} {
		fmt.Fprintln(stdout, "export "+line)
	}
	<-stop
	return s.Close()
}

// addAll adds the snapshots that the arguments name.
func addAll(s *ebsfake.Server, args []string, talk io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no images; see -help")
	}
	n := 0
	for i, arg := range args {
		path, keys, _ := strings.Cut(arg, ",")
		files := []string{path}
		if fi, err := os.Stat(path); err != nil {
			return err
		} else if fi.IsDir() {
			files = nil
			for _, pattern := range []string{"*.img", "*.raw"} {
				found, err := filepath.Glob(filepath.Join(path, pattern))
				if err != nil {
					return err
				}
				files = append(files, found...)
			}
			slices.Sort(files)
		}
		for _, file := range files {
			n++
			snap := ebsfake.Snapshot{ID: fmt.Sprintf("snap-%017x", n), VolumeID: fmt.Sprintf("vol-%017x", 1)}
			if len(files) > 1 || file != path {
				snap.VolumeID = fmt.Sprintf("vol-%017x", i+1)
			}
			if err := parseKeys(&snap, keys); err != nil {
				return fmt.Errorf("%s: %w", arg, err)
			}
			img, err := ebsfake.OpenFile(file)
			if err != nil {
				return err
			}
			if snap.StartTime.IsZero() {
				fi, err := img.Stat()
				if err != nil {
					return err
				}
				snap.StartTime = fi.ModTime().UTC()
			}
			snap.Image = img
			if err := s.Add(snap); err != nil {
				return err
			}
			fmt.Fprintf(talk, "yester-ebsfake: %s is %s of %s\n", file, snap.ID, snap.VolumeID)
		}
	}
	return nil
}

func parseKeys(snap *ebsfake.Snapshot, keys string) error {
	if keys == "" {
		return nil
	}
	for pair := range strings.SplitSeq(keys, ",") {
		k, v, ok := strings.Cut(pair, "=")
		tag, isTag := strings.CutPrefix(k, "tag:")
		if isTag && ok {
			if snap.Tags == nil {
				snap.Tags = map[string]string{}
			}
			snap.Tags[tag] = v
			continue
		}
		var err error
		switch k {
		case "id":
			snap.ID = v
		case "volume":
			snap.VolumeID = v
		case "time":
			snap.StartTime, err = time.Parse(time.RFC3339, v)
		case "description":
			snap.Description = v
		case "state":
			snap.State = v
		case "progress":
			snap.Progress = v
		case "tier":
			snap.Tier = v
		case "owner":
			snap.Owner = v
		case "kms":
			snap.KMSKey = v
		default:
			ok = false
		}
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%q is no key=value that is known", pair)
		}
	}
	return nil
}

func parseInstance(text string) (ebsfake.Instance, error) {
	id, devices, ok := strings.Cut(text, "=")
	i := ebsfake.Instance{ID: id, Devices: map[string]string{}}
	for d := range strings.SplitSeq(devices, ",") {
		name, volume, found := strings.Cut(d, ":")
		if !ok || !found {
			return i, fmt.Errorf("instance %q: want ID=DEVICE:VOLUME[,DEVICE:VOLUME…]", text)
		}
		if i.Root == "" {
			i.Root = name
		}
		i.Devices[name] = volume
	}
	return i, nil
}
