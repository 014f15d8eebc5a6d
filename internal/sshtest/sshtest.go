// Package sshtest runs a real SSH server for tests.
package sshtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Server is a running sshd that lets the user of the test in by a key.
type Server struct {
	// Command is the ssh program with the options that reach it.
	Command []string
	// Host is "127.0.0.1:port".
	Host string

	dir string
	cmd *exec.Cmd
	t   testing.TB
}

// Start starts an sshd; the test's end stops it. It needs root and Debian's
// openssh-server.
func Start(t testing.TB) *Server {
	t.Helper()
	sshd := "/usr/sbin/sshd"
	_, err := os.Stat(sshd)
	if err == nil && os.Getuid() != 0 {
		err = fmt.Errorf("sshd needs root")
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := &Server{dir: t.TempDir(), t: t}
	for _, name := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.path(name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Host = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(s.Host)
	s.write("config", fmt.Sprintf("HostKey %s\nListenAddress 127.0.0.1\nPort %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"+
		"PasswordAuthentication no\nPidFile none\nSubsystem sftp internal-sftp\n", s.path("host"), port, s.path("user.pub")))
	s.Trust()
	s.Command = []string{"ssh", "-F", "none", "-i", s.path("user"), "-oIdentitiesOnly=yes", "-oUserKnownHostsFile=" + s.path("known_hosts"), "-oGlobalKnownHostsFile=none"}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sshd, "-D", "-e", "-f", s.path("config"))
	log, err := os.Create(s.path("log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.cmd = cmd
	t.Cleanup(func() {
		s.Stop()
		log.Close()
	})
	for range 100 {
		if c, err := net.Dial("tcp", s.Host); err == nil {
			c.Close()
			return s
		}
		time.Sleep(50 * time.Millisecond)
	}
	text, _ := os.ReadFile(s.path("log"))
	t.Fatalf("sshd does not answer: %s", text)
	return nil
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// Trust makes the server's key the one that is known for its host.
func (s *Server) Trust() {
	s.t.Helper()
	key, err := os.ReadFile(s.path("host.pub"))
	if err != nil {
		s.t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(s.Host)
	s.write("known_hosts", fmt.Sprintf("[%s]:%s %s", host, port, key))
}

// Forget makes the server a host whose key isn't known.
func (s *Server) Forget() { s.write("known_hosts", "") }

// Disconnect ends all connections there are, as a broken line does; new ones can
// be made.
func (s *Server) Disconnect() {
	// A process of the server's for each connection.
	exec.Command("pkill", "-9", "-P", strconv.Itoa(s.cmd.Process.Pid)).Run() //nolint:errcheck // none is there
}

// Stop ends the server and all connections.
func (s *Server) Stop() {
	s.Disconnect()
	s.cmd.Process.Kill()
	s.cmd.Wait() //nolint:errcheck // killed
}
