package sftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
)

// connection is the connection to a host, made when it is first needed.
type connection struct {
	command          []string
	host, port, user string

	mu     sync.Mutex
	cur    *client
	closed bool
}

// client is one run of ssh.
type client struct {
	*sftp.Client
	cmd  *exec.Cmd
	said *lastWords
}

var errClosed = errors.New("the connection is closed")

// connectTime bounds the connection and the greeting: ssh's own limit for the
// connection alone comes first, and says more.
const connectTime = 45 * time.Second

// do calls what with a client, and once more with a new one when the connection
// turns out to be lost.
func (cn *connection) do(ctx context.Context, what func(*sftp.Client) error) error {
	for again := false; ; again = true {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := cn.get(ctx)
		if err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- what(c.Client) }()
		select {
		case err = <-done:
		case <-ctx.Done():
			return ctx.Err() // what goes on by itself, to its end
		}
		if err == nil || !isLost(err) {
			return err
		}
		cn.drop(c)
		if again {
			return c.said.explain(err)
		}
	}
}

// get returns the client there is, or makes one.
func (cn *connection) get(ctx context.Context) (*client, error) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.closed {
		return nil, errClosed
	}
	if cn.cur == nil {
		c, err := cn.connect(ctx)
		if err != nil {
			return nil, err
		}
		cn.cur = c
	}
	return cn.cur, nil
}

// lost forgets the client that h was opened with, if it is the one there is.
func (cn *connection) lost(h *sftp.File) {
	cn.mu.Lock()
	c := cn.cur
	cn.mu.Unlock()
	if c == nil {
		return
	}
	// A handle doesn't tell its client: one that still answers stays.
	if _, err := c.Getwd(); err != nil {
		cn.drop(c)
	}
}

// drop forgets a client whose connection is lost.
func (cn *connection) drop(c *client) {
	cn.mu.Lock()
	if cn.cur == c {
		cn.cur = nil
	}
	cn.mu.Unlock()
	c.end()
}

func (cn *connection) close() error {
	cn.mu.Lock()
	c := cn.cur
	cn.cur, cn.closed = nil, true
	cn.mu.Unlock()
	if c != nil {
		c.end()
	}
	return nil
}

// args are ssh's. It must not ask for anything, since nobody may be there, takes
// no host that it doesn't know, and notices when the other side is gone.
func (cn *connection) args() []string {
	command := cn.command
	if len(command) == 0 {
		command = []string{"ssh"}
	}
	a := append([]string{}, command...)
	a = append(a, "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=20",
		"-oServerAliveInterval=10", "-oServerAliveCountMax=3", "-oForwardX11=no", "-oForwardAgent=no",
		"-oClearAllForwardings=yes", "-oPermitLocalCommand=no", "-oRequestTTY=no")
	if cn.port != "" {
		a = append(a, "-p", cn.port)
	}
	if cn.user != "" {
		a = append(a, "-l", cn.user)
	}
	return append(a, "-s", "--", cn.host, "sftp")
}

func (cn *connection) connect(ctx context.Context) (*client, error) {
	args := cn.args()
	cmd := exec.Command(args[0], args[1:]...)
	c := &client{cmd: cmd, said: &lastWords{}}
	cmd.Stderr = c.said
	ownGroup(cmd)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("%s is missing (apt install openssh-client), and makes the connection: %w", args[0], err)
		}
		return nil, err
	}
	ready := make(chan error, 1)
	go func() {
		var err error
		c.Client, err = sftp.NewClientPipe(out, in)
		ready <- err
	}()
	timer := time.NewTimer(connectTime)
	defer timer.Stop()
	select {
	case err = <-ready:
	case <-timer.C:
		err = fmt.Errorf("no answer in %v", connectTime)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		cmd.Process.Kill()
		in.Close()
		cmd.Wait() //nolint:errcheck // killed
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.said.explain(err)
	}
	return c, nil
}

// end closes the client and waits for ssh.
func (c *client) end() {
	c.Client.Close()
	c.cmd.Process.Kill()
	c.cmd.Wait() //nolint:errcheck // killed
}

// lastWords keeps the end of what ssh has said on stderr.
type lastWords struct {
	mu  sync.Mutex
	buf []byte
}

var _ io.Writer = (*lastWords)(nil)

const maxWords = 4096

func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	if n := len(w.buf) - maxWords; n > 0 {
		w.buf = w.buf[n:]
	}
	return len(p), nil
}

// ErrConnection means that there is no connection to the host, and why.
var ErrConnection = errors.New("no connection by ssh")

// explain adds what ssh has said to err.
func (w *lastWords) explain(err error) error {
	w.mu.Lock()
	words := strings.Join(strings.Fields(string(bytes.ToValidUTF8(w.buf, []byte("?")))), " ")
	w.mu.Unlock()
	if words == "" {
		return fmt.Errorf("%w: %w", ErrConnection, err)
	}
	return fmt.Errorf("%w: %s", ErrConnection, words)
}
