package running

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// mine returns the services of this test among all that run.
func mine(t *testing.T) []Status {
	t.Helper()
	all, err := List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var list []Status
	for _, s := range all {
		if s.Kind == "runningtest" && s.PID == os.Getpid() {
			list = append(list, s)
		}
	}
	return list
}

func TestRegister(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir()) // root's place is fixed
	want := Service{Kind: "runningtest", PID: os.Getpid(), Source: "/backups/a b", Where: "/mnt", Started: time.Now().UTC().Round(0)}
	reg, err := Register(want, func() any { return map[string]int{"reads": 7} })
	if err != nil {
		t.Fatal(err)
	}
	list := mine(t)
	if len(list) != 1 || !list[0].Alive || list[0].Service != want {
		t.Fatalf("listed %+v, want %+v", list, want)
	}
	var stats map[string]int
	if err := json.Unmarshal(list[0].Stats, &stats); err != nil || stats["reads"] != 7 {
		t.Errorf("stats %s, %v", list[0].Stats, err)
	}
	if err := list[0].Forget(); err == nil {
		t.Error("a service that is alive can be forgotten")
	}
	fi, err := os.Stat(filepath.Dir(list[0].file))
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the folder's mode is %v, %v", fi.Mode(), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if list[0].WaitGone(ctx) == nil {
		t.Error("WaitGone returns while the entry is there")
	}
	if err := reg.Close(); err != nil {
		t.Error(err)
	}
	if err := list[0].WaitGone(context.Background()); err != nil {
		t.Error(err)
	}
	if list := mine(t); len(list) != 0 {
		t.Errorf("still listed: %+v", list)
	}
}

// TestDead leaves the entry of a service that ended without a word.
func TestDead(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	reg, err := Register(Service{Kind: "runningtest", PID: os.Getpid()}, func() any { return nil })
	if err != nil {
		t.Fatal(err)
	}
	reg.l.Close()
	list := mine(t)
	if len(list) != 1 || list[0].Alive || list[0].Stats != nil {
		t.Fatalf("listed %+v, want one that is dead", list)
	}
	if err := list[0].Forget(); err != nil {
		t.Error(err)
	}
	if list := mine(t); len(list) != 0 {
		t.Errorf("still listed: %+v", list)
	}
}
