package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"syscall"

	"yester/restorepoint"
)

// talker prints what isn't data: warnings, errors and hints, to stderr. A message
// that was printed is not printed again, unless repeat is set.
type talker struct {
	w      io.Writer
	json   bool
	repeat bool
	level  slog.Level

	mu     sync.Mutex
	said   map[string]bool
	status bool // a line of progress stands on the terminal
}

// maxSaid bounds how many messages are remembered.
const maxSaid = 1000

// talkLine is a message as --json prints it.
type talkLine struct {
	Error   string             `json:"error,omitempty"`
	Warning string             `json:"warning,omitempty"`
	Info    string             `json:"info,omitempty"`
	Hint    string             `json:"hint,omitempty"`
	Code    int                `json:"code,omitempty"`
	Cost    *restorepoint.Cost `json:"cost,omitempty"` // of what was asked of AWS
}

func (t *talker) say(l talkLine) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.said == nil {
		t.said = make(map[string]bool)
	}
	key := fmt.Sprint(l)
	if t.said[key] && !t.repeat {
		return
	}
	if len(t.said) < maxSaid && !t.repeat {
		t.said[key] = true
	}
	t.clear()
	if t.json {
		enc := json.NewEncoder(t.w)
		enc.SetEscapeHTML(false)
		enc.Encode(l)
		return
	}
	if l.Cost != nil {
		l.Info = "fetched " + l.Cost.Text
	}
	for _, part := range []struct{ kind, text string }{
		{"error", l.Error}, {"warning", l.Warning}, {"info", l.Info}, {"hint", l.Hint},
	} {
		if part.text != "" {
			fmt.Fprintf(t.w, "yester: %s: %s\n", part.kind, printable(part.text))
		}
	}
}

// progress shows a line that the next one replaces; "" takes it away.
func (t *talker) progress(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	if line != "" {
		io.WriteString(t.w, line)
		t.status = true
	}
}

func (t *talker) clear() {
	if t.status {
		io.WriteString(t.w, "\r\x1b[K")
		t.status = false
	}
}

// fail prints an error that ends a command.
func (g *globalFlags) fail(err error) {
	var silent *silentError
	// Whoever reads stdout has seen enough.
	if errors.As(err, &silent) || errors.Is(err, syscall.EPIPE) {
		return
	}
	t := g.talk
	if t == nil {
		t = &talker{w: g.stderr, json: g.json}
	}
	l := talkLine{Error: message(err), Hint: hint(err)}
	if t.json {
		l.Code = code(err)
	}
	t.say(l)
}

// problem prints an error that doesn't end a command, and counts it.
func (g *globalFlags) problem(t *tally, err error) {
	g.fail(err)
	t.codes = append(t.codes, code(err))
}

func (g *globalFlags) warn(format string, args ...any) {
	g.talk.say(talkLine{Warning: fmt.Sprintf(format, args...)})
}

func (g *globalFlags) info(format string, args ...any) {
	if g.verbose {
		g.talk.say(talkLine{Info: fmt.Sprintf(format, args...)})
	}
}

// printable makes what comes from an image harmless on a terminal.
func printable(s string) string {
	clean := true
	for _, r := range s {
		if unsafeRune(r) && r != '\t' {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\t' || !unsafeRune(r):
			b.WriteRune(r)
		case r == '�' && !strings.HasPrefix(s[i:], "�"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// logHandler prints log records by a talker: the message, then the attributes in
// parentheses.
type logHandler struct {
	talk  *talker
	attrs []slog.Attr
}

func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.talk.level }

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	attrs := append([]slog.Attr(nil), h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, a)
		return true
	})
	msg := r.Message
	for i, a := range attrs {
		sep := ", "
		if i == 0 {
			sep = " ("
		}
		msg += sep + a.Key + " " + a.Value.String()
	}
	if len(attrs) > 0 {
		msg += ")"
	}
	l := talkLine{Warning: msg}
	if r.Level < slog.LevelWarn {
		l = talkLine{Info: msg}
	}
	h.talk.say(l)
	return nil
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.talk, append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup implements slog.Handler; groups aren't shown.
func (h *logHandler) WithGroup(string) slog.Handler { return h }
