package layout

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"yester/internal/nametime"
)

// Template is a layout that the user describes: the paths of disk images with
// placeholders in them.
type Template struct {
	text  string
	parts []part
	first *regexp.Regexp // with any name for the machine

	repeated bool // {machine} is in it more than once
}

// part is a piece of a template: a literal, or one of the others.
type part struct {
	kind   partKind
	text   string // of a literal; of a time, its layout: empty for any that nametime knows
	source string // regular expression
}

type partKind int

const (
	partLiteral partKind = iota
	partMachine
	partDisk
	partTime
)

// Match is what a Template finds in a path.
type Match struct {
	Machine, Disk string // empty where the template has no such placeholder
	Time          time.Time
	HasTime       bool
}

// maxTemplate bounds a template: a path has no more bytes (PATH_MAX).
const maxTemplate = 4096

// maxParts bounds its pieces: no path has more folders than a source is searched
// deep, with some names and dates in each.
const maxParts = 128

// ParseTemplate reads a template such as
//
//	{machine}/{time:2006-01-02}/{disk}.vmdk
//
// {machine} and {disk} stand for a name without a slash, {time:LAYOUT} for a time in
// the form that the layout shows as time.Parse has them, {time} for a date as it is
// found in names without a template, * for anything without a slash, and ** for any
// number of folders. Everything else stands for itself.
func ParseTemplate(text string) (*Template, error) {
	t := &Template{text: text}
	if text == "" || len(text) > maxTemplate {
		return nil, fmt.Errorf("a layout of %d characters", len(text))
	}
	count := make(map[partKind]int)
	for rest := text; rest != ""; {
		p, n, err := nextPart(rest)
		if err != nil {
			return nil, fmt.Errorf("at character %d: %w", len(text)-len(rest)+1, err)
		}
		if count[p.kind]++; len(t.parts) >= maxParts {
			return nil, fmt.Errorf("more than %d placeholders and pieces between them", maxParts)
		}
		t.parts = append(t.parts, p)
		rest = rest[n:]
	}
	if strings.HasPrefix(text, "/") || strings.HasSuffix(text, "/") {
		return nil, fmt.Errorf("it begins or ends with a slash; paths are relative to the source and name a file")
	}
	if count[partMachine]+count[partDisk]+count[partTime] == 0 {
		return nil, fmt.Errorf("there is no {machine}, {time:…} or {disk} in it")
	}
	if count[partDisk] > 1 {
		return nil, fmt.Errorf("{disk} is in it twice")
	}
	for _, p := range t.parts {
		if p.kind == partTime && p.text == "" && count[partTime] > 1 {
			return nil, fmt.Errorf("{time} without a form can't be one of several")
		}
	}
	t.repeated = count[partMachine] > 1
	var err error
	t.first, err = t.compile("")
	return t, err
}

// String returns the template as it was written.
func (t *Template) String() string { return t.text }

// nextPart reads the part that rest begins with, n bytes long.
func nextPart(rest string) (p part, n int, err error) {
	switch rest[0] {
	case '*':
		if strings.HasPrefix(rest, "**/") {
			return part{source: `(?:[^/]+/)*`}, 3, nil
		}
		if strings.HasPrefix(rest, "**") {
			return p, 0, fmt.Errorf("** stands for folders, and a slash follows it")
		}
		return part{source: `[^/]*`}, 1, nil
	case '}':
		return p, 0, fmt.Errorf("} without {")
	case '{':
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return p, 0, fmt.Errorf("{ without }")
		}
		name, form, hasForm := strings.Cut(rest[1:end], ":")
		switch {
		case name == "machine" && !hasForm:
			p = part{kind: partMachine, source: `([^/]+)`}
		case name == "disk" && !hasForm:
			p = part{kind: partDisk, source: `([^/]+)`}
		case name == "time" && !hasForm:
			p = part{kind: partTime, source: `([^/]+)`}
		case name == "time":
			source, err := timeSource(form)
			if err != nil {
				return p, 0, fmt.Errorf("{%s}: %w", rest[1:end], err)
			}
			p = part{kind: partTime, text: form, source: "(" + source + ")"}
		default:
			return p, 0, fmt.Errorf("unknown placeholder {%s}; there are {machine}, {disk} and {time:2006-01-02}", rest[1:end])
		}
		return p, end + 1, nil
	}
	n = strings.IndexAny(rest, "*{}")
	if n < 0 {
		n = len(rest)
	}
	return part{text: rest[:n], source: regexp.QuoteMeta(rest[:n])}, n, nil
}

// timeTokens are the elements of a time layout, longer ones before those that they
// begin with (package time, "Constants").
var timeTokens = []struct{ token, source string }{
	{"January", `[A-Z][a-z]{2,8}`}, {"Jan", `[A-Z][a-z]{2}`},
	{"Monday", `[A-Z][a-z]{5,8}`}, {"Mon", `[A-Z][a-z]{2}`},
	{"MST", `[A-Z]{3,5}`},
	{"2006", `[0-9]{4}`}, {"002", `[0-9]{3}`},
	{"01", `[0-9]{2}`}, {"02", `[0-9]{2}`}, {"03", `[0-9]{2}`}, {"04", `[0-9]{2}`}, {"05", `[0-9]{2}`}, {"06", `[0-9]{2}`},
	{"15", `[0-9]{2}`}, {"_2", `[ 0-9][0-9]`},
	{"Z07:00", `(?:Z|[+-][0-9]{2}:[0-9]{2})`}, {"Z0700", `(?:Z|[+-][0-9]{4})`}, {"Z07", `(?:Z|[+-][0-9]{2})`},
	{"-07:00", `[+-][0-9]{2}:[0-9]{2}`}, {"-0700", `[+-][0-9]{4}`}, {"-07", `[+-][0-9]{2}`},
	{"PM", `[AP]M`}, {"pm", `[ap]m`},
	{"1", `[0-9]{1,2}`}, {"2", `[0-9]{1,2}`}, {"3", `[0-9]{1,2}`}, {"4", `[0-9]{1,2}`}, {"5", `[0-9]{1,2}`},
}

// timeSource makes a regular expression of a time layout, so that a name beside it
// ends where the time begins.
func timeSource(form string) (string, error) {
	var b strings.Builder
	found := false
next:
	for rest := form; rest != ""; {
		for _, t := range timeTokens {
			if strings.HasPrefix(rest, t.token) {
				b.WriteString(t.source)
				rest = rest[len(t.token):]
				found = true
				continue next
			}
		}
		b.WriteString(regexp.QuoteMeta(rest[:1]))
		rest = rest[1:]
	}
	if !found {
		return "", fmt.Errorf("there is no element of a time in it; write how 2 January 2006, 15:04:05 would be written")
	}
	return b.String(), nil
}

// compile makes the expression of the whole template, with the machine's name in
// place of its placeholders where it is known.
func (t *Template) compile(machine string) (*regexp.Regexp, error) {
	var b strings.Builder
	b.WriteString(`\A(?s:`)
	for _, p := range t.parts {
		if p.kind == partMachine && machine != "" {
			b.WriteString("(" + regexp.QuoteMeta(machine) + ")")
			continue
		}
		b.WriteString(p.source)
	}
	b.WriteString(`)\z`)
	return regexp.Compile(b.String())
}

// noZone is the location of times whose text gives no zone. No text can give its
// offset.
var noZone = time.FixedZone("", 1)

// Match takes the path of a file apart; ok tells whether it fits. Times without a
// zone are loc's.
func (t *Template) Match(name string, loc *time.Location) (m Match, ok bool) {
	values := t.first.FindStringSubmatch(name)
	if values != nil && t.repeated {
		// A greedy first reading may have ended one of the names too late: the
		// first one decides, and has to fit everywhere.
		exact, err := t.compile(values[1+t.index(partMachine)])
		if err != nil {
			return Match{}, false
		}
		values = exact.FindStringSubmatch(name)
	}
	if values == nil {
		return Match{}, false
	}
	var form, when []string
	i := 1
	for _, p := range t.parts {
		if p.kind == partLiteral {
			continue
		}
		switch v := values[i]; p.kind {
		case partMachine:
			m.Machine = SafeName(v)
		case partDisk:
			m.Disk = SafeName(v)
		case partTime:
			form, when = append(form, p.text), append(when, v)
		}
		i++
	}
	if len(form) == 0 {
		return m, true
	}
	m.HasTime = true
	if form[0] == "" {
		m.Time, _, ok = nametime.Find(when[0], loc)
		return m, ok
	}
	// Apart, so that the digits of two placeholders don't run into each other.
	layout, value := strings.Join(form, "\n"), strings.Join(when, "\n")
	at, err := time.ParseInLocation(layout, value, loc)
	if c, err := time.ParseInLocation(layout, value, noZone); err == nil && c.Location() == noZone {
		at, _ = nametime.Local(c, loc)
	}
	m.Time = at.UTC()
	return m, err == nil
}

// index returns how many placeholders are before the first of kind.
func (t *Template) index(kind partKind) (n int) {
	for _, p := range t.parts {
		if p.kind == kind {
			break
		}
		if p.kind != partLiteral {
			n++
		}
	}
	return n
}
