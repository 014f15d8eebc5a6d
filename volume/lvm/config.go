package lvm

import (
	"fmt"
	"strconv"
	"strings"
)

// The metadata is text in the syntax of lvm.conf (lvm.conf(5), lvmconfig(8)):
//
//	key = 1        # up to the end of the line
//	key = "text"   # \" and \\ inside
//	key = [ "text", 1, [] ]
//	section { … }

// value is what stands behind a key.
type value struct {
	kind kind
	num  int64
	str  string // of kindString and kindFloat
	list []value
	sub  *section
}

type kind uint8

const (
	kindInt kind = iota + 1
	kindFloat
	kindString
	kindList
	kindSection
)

// section is a run of keys with their values, in the order of the text.
type section struct {
	entries []entry
	index   map[string]int // of entries, once there are many
}

type entry struct {
	key string
	value
}

// indexed is how many entries a section has before it gets an index: most have
// fewer, and a map costs more memory than they do.
const indexed = 16

// lookup returns the value of key; nil when there is none.
func (s *section) lookup(key string) *value {
	if s.index != nil {
		if i, ok := s.index[key]; ok {
			return &s.entries[i].value
		}
		return nil
	}
	for i := range s.entries {
		if s.entries[i].key == key {
			return &s.entries[i].value
		}
	}
	return nil
}

func (s *section) add(key string, v value) bool {
	if s.lookup(key) != nil {
		return false
	}
	s.entries = append(s.entries, entry{key, v})
	switch {
	case s.index != nil:
		s.index[key] = len(s.entries) - 1
	case len(s.entries) == indexed:
		s.index = make(map[string]int)
		for i := range s.entries {
			s.index[s.entries[i].key] = i
		}
	}
	return true
}

// parser reads a text that has been checked for its size.
type parser struct {
	text   string
	pos    int
	budget *budget
}

// parse reads text up to its end or its first NUL. What it takes in memory is
// limited by b.
func parse(text string, b *budget) (*section, error) {
	text, _, _ = strings.Cut(text, "\x00")
	p := &parser{text: text, budget: b}
	s, err := p.section(0)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", 1+strings.Count(p.text[:p.pos], "\n"), err)
	}
	return s, nil
}

// skip passes over blanks and comments and returns the byte that comes then, 0 at
// the end.
func (p *parser) skip() byte {
	for p.pos < len(p.text) {
		switch c := p.text[p.pos]; c {
		case ' ', '\t', '\n', '\r':
			p.pos++
		case '#':
			end := strings.IndexByte(p.text[p.pos:], '\n')
			if end < 0 {
				p.pos = len(p.text)
				return 0
			}
			p.pos += end
		default:
			return c
		}
	}
	return 0
}

// section reads entries up to the brace that ends them, or to the end of the text
// at depth 0.
func (p *parser) section(depth int) (*section, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("sections within each other more than %d deep", maxDepth)
	}
	s := &section{}
	for {
		switch c := p.skip(); {
		case c == 0 && depth == 0:
			return s, nil
		case c == 0:
			return nil, fmt.Errorf("the text ends within a section")
		case c == '}' && depth > 0:
			p.pos++
			return s, nil
		}
		key, err := p.key()
		if err != nil {
			return nil, err
		}
		var v value
		switch p.skip() {
		case '{':
			p.pos++
			if err := p.count(); err != nil {
				return nil, err
			}
			sub, err := p.section(depth + 1)
			if err != nil {
				return nil, err
			}
			v = value{kind: kindSection, sub: sub}
		case '=':
			p.pos++
			if v, err = p.value(depth + 1); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("neither = nor { behind %.40q", key)
		}
		if !s.add(key, v) {
			return nil, fmt.Errorf("%.40q for the second time", key)
		}
	}
}

func (p *parser) count() error {
	if p.budget.values--; p.budget.values < 0 {
		return fmt.Errorf("more than %d values in all texts", maxAllValues)
	}
	return nil
}

func (p *parser) key() (string, error) {
	if p.text[p.pos] == '"' {
		return p.quoted()
	}
	word := p.word()
	if word == "" {
		return "", fmt.Errorf("%q where a key should be", p.text[p.pos])
	}
	return word, nil
}

// word returns the bytes up to the next that means something to the syntax.
func (p *parser) word() string {
	start := p.pos
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n#={}[],\"", p.text[p.pos]) < 0 {
		p.pos++
	}
	return p.text[start:p.pos]
}

// quoted reads a string; p.pos is at its first quote.
func (p *parser) quoted() (string, error) {
	p.pos++
	start, escaped := p.pos, false
	for ; p.pos < len(p.text); p.pos++ {
		switch p.text[p.pos] {
		case '\\':
			escaped = true
			p.pos++
		case '"':
			s := p.text[start:p.pos]
			p.pos++
			if escaped {
				s = unescape(s)
			}
			return s, nil
		}
	}
	p.pos = len(p.text) // a backslash at the very end goes beyond
	return "", fmt.Errorf("the text ends within a string")
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func (p *parser) value(depth int) (value, error) {
	if depth > maxDepth {
		return value{}, fmt.Errorf("arrays within each other more than %d deep", maxDepth)
	}
	if err := p.count(); err != nil {
		return value{}, err
	}
	switch p.skip() {
	case '"':
		s, err := p.quoted()
		return value{kind: kindString, str: s}, err
	case '[':
		p.pos++
		return p.list(depth)
	}
	word := p.word()
	if n, err := strconv.ParseInt(word, 10, 64); err == nil {
		return value{kind: kindInt, num: n}, nil
	}
	if _, err := strconv.ParseFloat(word, 64); err == nil {
		return value{kind: kindFloat, str: word}, nil
	}
	return value{}, fmt.Errorf("%.40q is no value", word)
}

// list reads the values of an array; its bracket has been read.
func (p *parser) list(depth int) (value, error) {
	v := value{kind: kindList}
	for {
		if p.skip() == ']' {
			p.pos++
			return v, nil
		}
		one, err := p.value(depth + 1)
		if err != nil {
			return v, err
		}
		v.list = append(v.list, one)
		switch p.skip() {
		case ',':
			p.pos++
		case ']':
		default:
			return v, fmt.Errorf("neither a comma nor ] behind an array's value")
		}
	}
}

// equal reports whether two sections say the same.
func equal(a, b *section) bool {
	if len(a.entries) != len(b.entries) {
		return false
	}
	for i := range a.entries {
		if a.entries[i].key != b.entries[i].key || !equalValue(&a.entries[i].value, &b.entries[i].value) {
			return false
		}
	}
	return true
}

func equalValue(a, b *value) bool {
	if a.kind != b.kind || a.num != b.num || a.str != b.str || len(a.list) != len(b.list) {
		return false
	}
	for i := range a.list {
		if !equalValue(&a.list[i], &b.list[i]) {
			return false
		}
	}
	return a.kind != kindSection || equal(a.sub, b.sub)
}

// The getters below take a key's value when it is of the right kind.

func (s *section) section(key string) (*section, bool) {
	v := s.lookup(key)
	if v == nil || v.kind != kindSection {
		return nil, false
	}
	return v.sub, true
}

func (s *section) text(key string) (string, bool) {
	v := s.lookup(key)
	if v == nil || v.kind != kindString {
		return "", false
	}
	return v.str, true
}

// number returns a number that isn't negative.
func (s *section) number(key string) (uint64, bool) {
	v := s.lookup(key)
	if v == nil || v.kind != kindInt || v.num < 0 {
		return 0, false
	}
	return uint64(v.num), true
}

// array returns the values of an array; a single value is an array of one.
func (s *section) array(key string) ([]value, bool) {
	switch v := s.lookup(key); {
	case v == nil || v.kind == kindSection:
		return nil, false
	case v.kind == kindList:
		return v.list, true
	default:
		return []value{*v}, true
	}
}

// has reports whether one of the arrays keys, "status" and "flags", has the string
// name.
func (s *section) has(name string) bool {
	for _, key := range []string{"status", "flags"} {
		list, _ := s.array(key)
		for i := range list {
			if list[i].kind == kindString && list[i].str == name {
				return true
			}
		}
	}
	return false
}
