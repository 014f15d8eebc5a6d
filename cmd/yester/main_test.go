package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(testRun{m}, map[string]func(){"yester": main})
}

// testRun is a run of the tests, with the repositories removed that it made.
type testRun struct{ m *testing.M }

func (r testRun) Run() int {
	code := r.m.Run()
	if repositories.dir != "" {
		os.RemoveAll(repositories.dir)
	}
	return code
}

// TestScript runs the scripts in testdata/script, which see the command as its
// users do. $SRC is the folder that makeFixtures fills.
func TestScript(t *testing.T) {
	fixtures := makeFixtures(t)
	repos := makeRepositories(t)
	sources := func() string {
		sum := hashTree(t, fixtures)
		if repos != "" {
			sum += hashTree(t, repos)
		}
		return sum
	}
	before := sources()
	t.Run("scripts", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir:           "testdata/script",
			UpdateScripts: os.Getenv("UPDATE") != "",
			Setup: func(e *testscript.Env) error {
				e.Setenv("SRC", fixtures)
				e.Setenv("RDIFF", repos)
				e.Setenv("TZ", "UTC")
				return nil
			},
			Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
				"exits":       exits,
				"mtime":       printMtime,
				"fillcache":   fillCache,
				"damagecache": damageCache,
				"opencache":   openCache,
			},
			Condition: func(cond string) (bool, error) {
				switch cond {
				case "root":
					return os.Geteuid() == 0, nil
				case "rdiff":
					return repos != "", nil
				}
				return false, fmt.Errorf("unknown condition %q", cond)
			},
		})
	})
	if after := sources(); before != after {
		t.Error("a source was changed")
	}
}

// exits runs a command that must end with the given exit code:
//
//	exits 3 yester ls $SRC/web01 /nothing
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// printMtime prints permissions, size and modification time of files.
func printMtime(ts *testscript.TestScript, _ bool, args []string) {
	for _, a := range args {
		fi, err := os.Lstat(ts.MkAbs(a))
		ts.Check(err)
		fmt.Fprintf(ts.Stdout(), "%s %d %s %s\n", fi.Mode(), fi.Size(), fi.ModTime().UTC().Format("2006-01-02T15:04:05.999999999Z"), a)
	}
}
