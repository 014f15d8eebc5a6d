// Command iscsi-bench compares three iSCSI targets on one page-cached raw file:
// tgtd (Debian's tgt), gotgt v0.2.2 (testdata/gotgt-bench) and this one
// (iscsi/internal/serve), and with them `yester iscsi` on a dynamic VHD of the
// same content, which the others can't read. The initiators are real (iscsi-perf,
// qemu-img). The targets take turns within each round; what is printed are
// medians, and the medians of the rounds' ratios to tgtd on the raw file.
//
//	go run ./testdata/iscsi-bench [-size 2048] [-seconds 2] [-rounds 5]
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

var (
	size    = flag.Int("size", 2048, "MiB of the file")
	seconds = flag.Int("seconds", 2, "of each measurement")
	rounds  = flag.Int("rounds", 5, "measurements of each kind")
	only    = flag.String("only", "", "measure only what has this in its name")
)

const target = "iqn.2026-11.test:t"

// server is a target under test.
type server struct {
	name string
	addr string
	cmd  *exec.Cmd
	unit string // target and logical unit; "" for those of most
}

func (s *server) url() string {
	if s.unit != "" {
		return "iscsi://" + s.addr + "/" + s.unit
	}
	return "iscsi://" + s.addr + "/" + target + "/1"
}

// cpu returns the CPU time the server has used.
func (s *server) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	u, _ := strconv.Atoi(f[11])
	v, _ := strconv.Atoi(f[12])
	return time.Duration(u+v) * 10 * time.Millisecond // USER_HZ is 100
}

// peak returns the server's highest resident size, in MiB.
func (s *server) peak() float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(m[1]))
	return float64(n) / 1024
}

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "iscsi-bench:", err)
		os.Exit(1)
	}
}

func freePort() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func start(name string, args ...string) (*exec.Cmd, error) {
	c := exec.Command(name, args...)
	return c, c.Start()
}

// wait until someone listens at addr.
func wait(addr string) error {
	for range 200 {
		if c, err := net.Dial("tcp", addr); err == nil {
			return c.Close()
		}
		time.Sleep(25 * time.Millisecond)
	}
	return fmt.Errorf("nothing listens at %s", addr)
}

func startTgtd(file string) (*server, error) {
	port := freePort()
	control := strconv.Itoa(10000 + os.Getpid()%20000)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	c, err := start("tgtd", "-f", "-C", control, "--iscsi", "portal="+addr)
	if err != nil {
		return nil, err
	}
	s := &server{name: "tgtd", addr: addr, cmd: c}
	if err := wait(addr); err != nil {
		return s, err
	}
	for _, a := range []string{
		"--mode target --op new --tid 1 -T " + target,
		"--mode logicalunit --op new --tid 1 --lun 1 -b " + file,
		"--mode logicalunit --op update --tid 1 --lun 1 --params readonly=1",
		"--mode target --op bind --tid 1 -I ALL",
	} {
		if b, err := exec.Command("tgtadm", append([]string{"-C", control, "--lld", "iscsi"}, strings.Fields(a)...)...).CombinedOutput(); err != nil {
			return s, fmt.Errorf("tgtadm: %v: %s", err, b)
		}
	}
	return s, nil
}

func startOwn(name, bin string, args ...string) (*server, error) {
	addr := fmt.Sprintf("127.0.0.1:%d", freePort())
	c, err := start(bin, append([]string{"-listen", addr}, args...)...)
	if err != nil {
		return nil, err
	}
	return &server{name: name, addr: addr, cmd: c}, wait(addr)
}

func startGotgt(bin string, args ...string) (*server, error) {
	port := freePort()
	c, err := start(bin, append([]string{"-port", strconv.Itoa(port)}, args...)...)
	if err != nil {
		return nil, err
	}
	s := &server{name: "gotgt", addr: fmt.Sprintf("127.0.0.1:%d", port), cmd: c}
	return s, wait(s.addr)
}

// startVHD serves a VHD by `yester iscsi`, as a user does.
func startVHD(bin, image string) (*server, error) {
	addr := fmt.Sprintf("127.0.0.1:%d", freePort())
	c := exec.Command(bin, "iscsi", image, "--listen", addr, "--json")
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	s := &server{name: "vhd", addr: addr, cmd: c}
	var said struct {
		Targets []struct {
			IQN string `json:"iqn"`
		} `json:"targets"`
	}
	if err := json.NewDecoder(out).Decode(&said); err != nil || len(said.Targets) != 1 {
		return s, fmt.Errorf("yester iscsi: %d targets, %v", len(said.Targets), err)
	}
	s.unit = said.Targets[0].IQN + "/0"
	return s, wait(addr)
}

var average = regexp.MustCompile(`iops average (\d+)`)

// perf runs iscsi-perf and returns its average of operations per second.
func perf(s *server, name string, args ...string) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*seconds)*time.Second+10*time.Second)
	defer cancel()
	b, _ := exec.CommandContext(ctx, "iscsi-perf", append(append([]string{"-i", "iqn.2026-11.bench:" + name, "-t", strconv.Itoa(*seconds)}, args...), s.url())...).CombinedOutput()
	m := average.FindAllSubmatch(b, -1)
	if m == nil {
		return 0, fmt.Errorf("iscsi-perf against %s: %.200s", s.name, b)
	}
	return strconv.ParseFloat(string(m[len(m)-1][1]), 64)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

func run() error {
	dir, err := os.MkdirTemp("", "iscsi-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	own, gotgt, yester := filepath.Join(dir, "serve"), filepath.Join(dir, "gotgt-bench"), filepath.Join(dir, "yester")
	for _, b := range [][]string{{"build", "-o", own, "./iscsi/internal/serve"}, {"build", "-o", yester, "./cmd/yester"}, {"-C", "testdata/gotgt-bench", "build", "-o", gotgt, "."}} {
		if b[0] == "-C" {
			b = append([]string{"-C", b[1]}, b[2:]...)
		}
		if out, err := exec.Command("go", b...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %v\n%s", strings.Join(b, " "), err, out)
		}
	}
	file := filepath.Join(dir, "disk.raw")
	if out, err := exec.Command("dd", "if=/dev/urandom", "of="+file, "bs=1M", fmt.Sprintf("count=%d", *size)).CombinedOutput(); err != nil {
		return fmt.Errorf("dd: %v\n%s", err, out)
	}
	image := filepath.Join(dir, "disk.vhd")
	if out, err := exec.Command("qemu-img", "convert", "-O", "vpc", "-o", "subformat=dynamic,force_size=on", file, image).CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img: %v\n%s", err, out)
	}
	if err := exec.Command("cat", file, image).Run(); err != nil { // into the page cache
		return err
	}
	var servers []*server
	defer func() {
		for _, s := range servers {
			s.cmd.Process.Kill()
			s.cmd.Wait()
		}
	}()
	add := func(s *server, err error) error {
		if s != nil {
			servers = append(servers, s)
		}
		return err
	}
	for _, f := range []func() error{
		func() error { return add(startTgtd(file)) },
		func() error { return add(startGotgt(gotgt, file)) },
		func() error { return add(startOwn("yester", own, file)) },
		func() error { return add(startVHD(yester, image)) },
	} {
		if err := f(); err != nil {
			return err
		}
	}
	fmt.Printf("%-34s %10s %10s %10s %10s   %s   %s\n", "", "tgtd", "gotgt", "yester", "its VHD", "yester/tgtd", "VHD/tgtd")
	measure := func(label string, f func(s *server) (float64, error)) error {
		if !strings.Contains(label, *only) {
			return nil
		}
		results := map[string][]float64{}
		var ratios, vhdRatios []float64
		for range *rounds {
			one := map[string]float64{}
			for _, s := range servers {
				v, err := f(s)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					continue
				}
				one[s.name] = v
				results[s.name] = append(results[s.name], v)
			}
			if one["tgtd"] > 0 && one["yester"] > 0 {
				ratios = append(ratios, one["yester"]/one["tgtd"])
			}
			if one["tgtd"] > 0 && one["vhd"] > 0 {
				vhdRatios = append(vhdRatios, one["vhd"]/one["tgtd"])
			}
		}
		fmt.Printf("%-34s %10.0f %10.0f %10.0f %10.0f   %11.2f   %8.2f\n", label,
			median(results["tgtd"]), median(results["gotgt"]), median(results["yester"]), median(results["vhd"]), median(ratios), median(vhdRatios))
		return nil
	}
	for _, c := range []struct {
		label string
		args  []string
	}{
		{"1 MiB sequential QD8, IOPS", []string{"-m", "8", "-b", "2048"}},
		{"128 KiB sequential QD32, IOPS", []string{"-m", "32", "-b", "256"}},
		{"4 KiB random QD32, IOPS", []string{"-m", "32", "-b", "8", "-r"}},
		{"4 KiB random QD1, IOPS", []string{"-m", "1", "-b", "8", "-r"}},
	} {
		measure(c.label, func(s *server) (float64, error) { return perf(s, "a", c.args...) })
	}
	measure("four initiators, 128 KiB, IOPS", func(s *server) (float64, error) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var sum float64
		var failed error
		for i := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				v, err := perf(s, fmt.Sprint("p", i), "-m", "32", "-b", "256")
				mu.Lock()
				defer mu.Unlock()
				sum += v
				if err != nil {
					failed = err
				}
			}()
		}
		wg.Wait()
		return sum, failed
	})
	measure("CPU per 128 KiB read, µs", func(s *server) (float64, error) {
		before := s.cpu()
		v, err := perf(s, "c", "-m", "32", "-b", "256")
		if err != nil {
			return 0, err
		}
		return float64((s.cpu() - before).Microseconds()) / (v * float64(*seconds)), nil
	})
	measure("qemu-img convert, MiB/s", func(s *server) (float64, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		// To a disk that takes everything: what is measured is the reading.
		null := fmt.Sprintf("driver=null-co,size=%d", *size<<20)
		began := time.Now()
		if b, err := exec.CommandContext(ctx, "qemu-img", "convert", "-n", "--target-image-opts", s.url(), null).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("qemu-img from %s: %v: %s", s.name, err, b)
		}
		return float64(*size) / time.Since(began).Seconds(), nil
	})
	for _, s := range servers {
		fmt.Printf("%-34s %10.0f\n", "peak memory of "+s.name+", MiB", s.peak())
	}
	for _, f := range []func() (*server, error){
		func() (*server, error) { return startGotgt(gotgt, "-delay", "5ms", file) },
		func() (*server, error) { return startOwn("yester", own, "-delay", "5ms", file) },
	} {
		s, err := f()
		if s != nil {
			servers = append(servers, s)
		}
		if err != nil {
			return err
		}
		v, err := perf(s, "d", "-m", "32", "-b", "8", "-r")
		fmt.Printf("%-34s %10.0f  %v\n", "5 ms per read, QD32, IOPS: "+s.name, v, err)
	}
	return nil
}
