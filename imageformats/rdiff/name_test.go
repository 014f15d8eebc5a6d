package rdiff

import (
	"strings"
	"testing"
	"time"
)

func TestStamps(t *testing.T) {
	for s, want := range map[string]int64{
		"2023-11-14T22:13:20Z":      1_700_000_000,
		"2023-11-14T22-13-20Z":      1_700_000_000,
		"2023-11-15T03:43:20+05:30": 1_700_000_000,
		"2023-11-15T03-43-20+05-30": 1_700_000_000,
		"2023-11-14T18:43:20-04:30": 1_700_000_000, // St John's, three and a half hours behind
		"2023-11-14T14:13:20-08:00": 1_700_000_000,
		"2023-11-15T11:58:20+13:45": 1_700_000_000,
		"1960-01-01T00:00:00Z":      -315_619_200,
	} {
		if got, ok := parseStamp(s); !ok || got != want {
			t.Errorf("%s: %d, %t, want %d", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "Z", "2023-11-14T22:13:20", "2023-13-14T22:13:20Z", "2023-11-14T22:13:20+0530", "2023-11-14T22:13:20+05:3x",
		"2023-11-14 22:13:20Z", "2023-11-14T22:13-20Z", "2023-11-14T22:13:20*05:30", "2023-11-14T22:13:20+05.30"} {
		if got, ok := parseStamp(s); ok {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func TestIncrementNames(t *testing.T) {
	const at = "2023-11-14T22:13:20Z"
	for name, want := range map[string]increment{
		"a." + at + ".diff.gz":                      {base: "a", kind: kindDiff, gzip: true},
		"a.b.c." + at + ".snapshot":                 {base: "a.b.c", kind: kindSnapshot},
		"." + at + ".missing":                       {base: "", kind: kindMissing},
		"x.2020-01-01T00:00:00Z.dir." + at + ".dir": {base: "x.2020-01-01T00:00:00Z.dir", kind: kindDir},
		"a.gz." + at + ".diff":                      {base: "a.gz", kind: kindDiff},
		"current_mirror." + at + ".data":            {base: "current_mirror", kind: kindData},
		"new\nline." + at + ".snapshot.gz":          {base: "new\nline", kind: kindSnapshot, gzip: true},
	} {
		want.stamp, want.time = at, 1_700_000_000
		if got, ok := parseIncrement(name); !ok || got != want {
			t.Errorf("%q: %+v, %t, want %+v", name, got, ok, want)
		}
	}
	for _, name := range []string{"", ".", "a", "a.diff", at + ".diff", "a." + at, "a." + at + ".gz", "a." + at + ".other", "a.b.diff", "a." + at + ".DIFF"} {
		if got, ok := parseIncrement(name); ok {
			t.Errorf("%q: %+v", name, got)
		}
	}
}

func TestQuoting(t *testing.T) {
	for _, c := range []struct{ class, escapes, name, quoted, base string }{
		{"", "escape_trailing_spaces", "aux. ", "aux. ", ""},
		{":", "", "a:b;c", "a;058b;059c", ""},
		{"A-Z", "", "Tab Z", ";084ab ;090", ""},
		{`\x80-\xff`, "", "é", ";195;169", ""},
		{`\200-\377"*/:<>?\\|\177`, "", "a\\b\x7f\"|é", "a;092b;127;034;124;195;169", ""},
		{`^a-z0-9._\-`, "", "a-B c.d", "a-;066;032c.d", ""},
		{`\d\s`, "", "a1 b", "a;049;032b", ""},
		{`]x`, "", "a]x", "a;093;120", ""},
		{`a-`, "", "b-a", "b;045;097", ""},
		{":", "escape_trailing_spaces", "x. ", "x.;032", "x. "},
		{":", "escape_trailing_spaces", "x .", "x ;046", "x ."},
		{":", "escape_dos_devices", "AUX", ";065UX", ""},
		{":", "escape_dos_devices", "con.tar.gz", ";099on.tar.gz", ""},
		{":", "escape_dos_devices", "com0", ";099om0", ""},
		{":", "escape_dos_devices", "lpt0", "lpt0", ""},
		{":", "escape_dos_devices", "lpt9.x", ";108pt9.x", ""},
		{":", "escape_dos_devices", "auxiliary", "auxiliary", ""},
		{"A-Z", "escape_dos_devices\nescape_trailing_spaces\n", "NUL.", ";078;085;076;046", ";078;085;076."},
	} {
		q, err := parseQuoting(c.class, c.escapes)
		if err != nil {
			t.Errorf("%q: %v", c.class, err)
			continue
		}
		if c.base == "" {
			c.base = c.quoted
		}
		if got := q.quote(c.name); got != c.quoted {
			t.Errorf("%q: %q is quoted %q, want %q", c.class, c.name, got, c.quoted)
		}
		if got := q.quoteBase(c.name); got != c.base {
			t.Errorf("%q: %q is quoted %q before a time, want %q", c.class, c.name, got, c.base)
		}
		for _, s := range []string{c.quoted, c.base} {
			if got, ok := q.unquote(s); !ok || got != c.name {
				t.Errorf("%q: %q is unquoted %q, %t, want %q", c.class, s, got, ok, c.name)
			}
		}
	}
	for _, class := range []string{"a]b", `\q`, "z-a", `\x4`, `a\`, `a-\d`, `\777`} {
		if _, err := parseQuoting(class, ""); err == nil {
			t.Errorf("class %q was taken", class)
		}
	}
	if _, err := parseQuoting(":", "escape_unknown"); err == nil {
		t.Error("an unknown escape was taken")
	}
	q, err := parseQuoting(":", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"a:b", "a;05", "a;0x1", "a;300", ";097", "a;"} {
		if name, ok := q.unquote(s); ok {
			t.Errorf("%q, which is quoted by none, was taken for %q", s, name)
		}
	}
}

func TestPathOrder(t *testing.T) {
	sorted := []string{"", "a", "a/b", "a/b/c", "a/b-", "a/c", "a!", "a-b", "a-b/c", "a.b", "aa", "b", "\xff"}
	for i, a := range sorted {
		for j, b := range sorted {
			c := comparePaths(a, b)
			if (c < 0) != (i < j) || (c > 0) != (i > j) {
				t.Errorf("%q and %q: %d", a, b, c)
			}
		}
	}
	for _, bad := range []string{"/", "a/", "/a", "a//b", ".", "..", "a/../b", "../../etc/passwd", "a/.", "a\x00b", strings.Repeat("n", maxName+1), strings.Repeat("a/", maxPath/2) + "a"} {
		if checkPath([]byte(bad)) == nil {
			t.Errorf("path %.40q was taken", bad)
		}
	}
}

// TestSettled is about when a directory's time tells of its next change.
func TestSettled(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for age, want := range map[time.Duration]bool{time.Second: false, 3 * time.Second: true, -time.Second: false, -2 * time.Hour: true, time.Hour: true} {
		v := versionAt(now.Add(-age))
		if got := settled(v, now); got != want {
			t.Errorf("%v old: %t", age, got)
		}
	}
}
