package rdiff

import (
	"strings"

	"yester/internal/ondisk"
)

// format names the reader in errors.
const format = "rdiff-backup"

// quoting is how the repository writes names: which characters it replaces by
// ";" and their three-digit decimal code, because the file system it lies on can't
// hold them or doesn't tell them apart.
type quoting struct {
	on      bool
	chars   [256]bool
	devices bool // the first character of DOS device names too
	trails  bool // and a space or dot at the end
}

// parseQuoting reads the two files that say how names are quoted. Without
// characters to quote nothing is, whatever escapes says.
func parseQuoting(chars, escapes string) (*quoting, error) {
	q := &quoting{}
	if chars == "" {
		return q, nil
	}
	q.on = true
	if err := q.parseClass(chars); err != nil {
		return nil, err
	}
	q.chars[quotingChar] = true
	for line := range strings.SplitSeq(escapes, "\n") {
		switch strings.TrimSpace(line) {
		case "":
		case escapeDevices:
			q.devices = true
		case escapeTrails:
			q.trails = true
		default:
			return nil, ondisk.Unsupportedf(format, escapesFile, -1, "escape %q", line)
		}
	}
	return q, nil
}

// parseClass reads what stands between the brackets of a character class of
// Python's regular expressions over bytes.
func (q *quoting) parseClass(s string) error {
	negate := false
	i := 0
	if s[0] == '^' {
		negate = true
		i++
	}
	first := i
	for i < len(s) {
		if s[i] == ']' && i > first {
			return ondisk.Unsupportedf(format, charsFile, int64(i), "%q is no single class of characters", s)
		}
		low, set, n := classItem(s[i:])
		if n == 0 {
			return ondisk.Unsupportedf(format, charsFile, int64(i), "escape in %q", s)
		}
		i += n
		if set != nil {
			for c := range 256 {
				q.chars[c] = q.chars[c] || set(byte(c))
			}
			continue
		}
		high := low
		if i+1 < len(s) && s[i] == '-' {
			h, set, n := classItem(s[i+1:])
			if n == 0 || set != nil || h < low {
				return ondisk.Unsupportedf(format, charsFile, int64(i), "range in %q", s)
			}
			high = h
			i += 1 + n
		}
		for c := int(low); c <= int(high); c++ {
			q.chars[c] = true
		}
	}
	if negate {
		for c := range q.chars {
			q.chars[c] = !q.chars[c]
		}
	}
	return nil
}

// classItem reads one character or one set (\d) of a class, of n bytes; n is 0
// when it isn't known.
func classItem(s string) (c byte, set func(byte) bool, n int) {
	if s[0] != '\\' {
		return s[0], nil, 1
	}
	if len(s) == 1 {
		return 0, nil, 0
	}
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	word := func(c byte) bool { return digit(c) || c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	space := func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
	not := func(f func(byte) bool) func(byte) bool { return func(c byte) bool { return !f(c) } }
	switch e := s[1]; e {
	case 'd':
		return 0, digit, 2
	case 'D':
		return 0, not(digit), 2
	case 'w':
		return 0, word, 2
	case 'W':
		return 0, not(word), 2
	case 's':
		return 0, space, 2
	case 'S':
		return 0, not(space), 2
	case 'a', 'b', 'f', 'n', 'r', 't', 'v':
		return map[byte]byte{'a': 7, 'b': 8, 'f': 12, 'n': 10, 'r': 13, 't': 9, 'v': 11}[e], nil, 2
	case 'x':
		if len(s) < 4 {
			return 0, nil, 0
		}
		v, ok := number(s[2:4], 16)
		if !ok {
			return 0, nil, 0
		}
		return v, nil, 4
	case '0', '1', '2', '3', '4', '5', '6', '7':
		end := 2
		for end < len(s) && end < 4 && s[end] >= '0' && s[end] <= '7' {
			end++
		}
		v, ok := number(s[1:end], 8)
		if !ok {
			return 0, nil, 0
		}
		return v, nil, end
	default:
		if word(e) {
			return 0, nil, 0
		}
		return e, nil, 2
	}
}

func number(s string, base int) (byte, bool) {
	v := 0
	for i := range len(s) {
		var d int
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			d = int(c - '0')
		case c >= 'a' && c <= 'f':
			d = int(c-'a') + 10
		case c >= 'A' && c <= 'F':
			d = int(c-'A') + 10
		default:
			return 0, false
		}
		if d >= base {
			return 0, false
		}
		v = v*base + d
	}
	return byte(v), v < 256
}

func appendQuoted(b []byte, c byte) []byte {
	return append(b, quotingChar, '0'+c/100, '0'+c/10%10, '0'+c%10)
}

// quote returns name as the repository writes it.
func (q *quoting) quote(name string) string { return q.write(name, true) }

// quoteBase returns the part of an increment's name that is before its time: a
// space or dot at the end of name isn't at the end there.
func (q *quoting) quoteBase(name string) string { return q.write(name, false) }

func (q *quoting) write(name string, whole bool) string {
	if !q.on {
		return name
	}
	b := make([]byte, 0, len(name)+16)
	for i := range len(name) {
		if q.chars[name[i]] {
			b = appendQuoted(b, name[i])
		} else {
			b = append(b, name[i])
		}
	}
	if n := len(b); whole && q.trails && n > 0 && (b[n-1] == ' ' || b[n-1] == '.') {
		b = appendQuoted(b[:n-1], b[n-1])
	}
	if q.devices && isDevice(string(b)) {
		b = append(appendQuoted(nil, b[0]), b[1:]...)
	}
	return string(b)
}

// isDevice reports whether DOS takes name for a device: by what is before the
// first dot.
func isDevice(name string) bool {
	stem, rest, _ := strings.Cut(name, ".")
	if strings.Contains(rest, "\n") { // the program's expression ends there
		return false
	}
	stem = strings.ToLower(stem)
	switch stem {
	case "aux", "prn", "con", "nul":
		return true
	}
	if len(stem) != 4 || stem[3] < '0' || stem[3] > '9' {
		return false
	}
	return stem[:3] == "com" || stem[:3] == "lpt" && stem[3] != '0'
}

// unquote returns the name that quoted stands for. It serves names of rdiff-backup's
// own (times, prefixes) and repositories that have lost their metadata; a user's
// files are found the other way round, by quoting the names in the metadata. What
// isn't as quote would write it is no name of this repository, and ok is false.
func (q *quoting) unquote(quoted string) (name string, ok bool) {
	if !q.on || strings.IndexByte(quoted, quotingChar) < 0 {
		return quoted, q.quote(quoted) == quoted || q.quoteBase(quoted) == quoted
	}
	b := make([]byte, 0, len(quoted))
	for i := 0; i < len(quoted); i++ {
		if quoted[i] != quotingChar {
			b = append(b, quoted[i])
			continue
		}
		if len(quoted) < i+4 {
			return "", false
		}
		v := 0
		for _, c := range []byte(quoted[i+1 : i+4]) {
			if c < '0' || c > '9' {
				return "", false
			}
			v = v*10 + int(c-'0')
		}
		if v > 255 {
			return "", false
		}
		b = append(b, byte(v))
		i += 3
	}
	name = string(b)
	return name, q.quote(name) == quoted || q.quoteBase(name) == quoted
}
