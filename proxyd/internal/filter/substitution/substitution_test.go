package substitution

import (
	"regexp"
	"strings"
	"testing"
)

func TestAppend(t *testing.T) {
	var m Machine
	for _, c := range []struct{ pattern, text, in, want string }{
		{"^/users/([0-9]+)$", `/people/\1`, "/users/7", "/people/7"},
		{"^/users/([0-9]+)$", `/people/\1`, "/users/7x", "/users/7x"},
		{"a", "b", "/a/a", "/b/b"},
		{"^/x", "", "/x/x", "/x"},
		{"(b)", `$1\0\1`, "/b", "/$1bb"},
		{"(a)|(b)", `[\1\2]`, "abc", "[a][b]c"},
		{"x*", "-", "abxd", "-a-b-d-"},
		{"", "-", "é", "-é-"},
		{`\b`, "|", "a bc", "|a| |bc|"},
		{"(?i)API/(v[0-9])/(.*)", `\2?\1`, "/api/V2/x/y", "/x/y?V2"},
		{"(a+)(a*)", `<\1|\2>`, "aaa", "<aaa|>"},
		{"(a+?)(a*)", `<\1|\2>`, "aaa", "<a|aa>"},
		{"(?:(a)|b)*", `<\1>`, "ab", "<a>"},
		{"(?:(a)|(b))+", `<\2>`, "ba", "<b>"},
		{"a$|b", "x", "abab", "axax"},
		{"/+", "/", "//a///b", "/a/b"},
		{".z", "y", "/\xffz\xc3z", "/yy"},
	} {
		s, err := New(c.pattern, c.text)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		if got := string(m.Append([]byte("-"), []byte(c.in), s)); got != "-"+c.want {
			t.Errorf("%q to %q of %q: got %q, want %q", c.pattern, c.text, c.in, got[1:], c.want)
		}
	}
	for _, bad := range []string{`\2`, `\x`, `\`, `\\`} {
		if _, err := New("(a)", bad); err == nil {
			t.Errorf("substitution %q was taken", bad)
		}
	}
	if _, err := New("(", ""); err == nil {
		t.Error("an expression that is none was taken")
	}
}

// TestLong holds that what is too long for a machine is replaced all the same, and that a machine keeps its bound.
func TestLong(t *testing.T) {
	s, err := New("(a)(b)?", `\2\1`)
	if err != nil {
		t.Fatal(err)
	}
	var m Machine
	for _, n := range []int{100, maxSeen / s.row, maxSeen} {
		in := strings.Repeat("ab", n/2)
		if got := string(m.Append(nil, []byte(in), s)); got != strings.Repeat("ba", n/2) {
			t.Errorf("%d bytes: got %d others", n, len(got))
		}
		if cap(m.seen) > 2*maxSeen {
			t.Errorf("%d words", cap(m.seen))
		}
	}
}

func TestAllocatesNothing(t *testing.T) {
	var m Machine
	dst := make([]byte, 0, 256)
	for _, pattern := range []string{"^/users/([0-9]+)/(.*)$", "/(u)sers|(7)", "[a-z]"} {
		s, err := New(pattern, `/people/\1\2\0`)
		if pattern == "[a-z]" {
			s, err = New(pattern, `\0`)
		}
		if err != nil {
			t.Fatal(err)
		}
		path := []byte("/users/1234567/basket/7")
		if n := testing.AllocsPerRun(100, func() { dst = m.Append(dst[:0], path, s) }); n != 0 {
			t.Errorf("%s: %v allocations", pattern, n)
		}
	}
}

// FuzzAppend holds it to the regexp package.
func FuzzAppend(f *testing.F) {
	for _, pattern := range []string{"^/a(b*)$", "(a|ab)(c|bcd)(d*)", "(a*)*", "(a*)+b?", "x*", `\b|^`, "(?i)é(.)", "(?m)^a$", `\Aa\z`, "(?:a?){3}", "(|a)*", "(|a)+", "a{2,5}?b", "[^/]+/?", `\B`, "(?s).", "a|$"} {
		f.Add(pattern, `<\0\1>`, "/abé\nabcd aaab")
	}
	var m Machine
	f.Fuzz(func(t *testing.T, pattern, text, in string) {
		if len(pattern) > 64 || len(in) > 256 {
			return
		}
		s, err := New(pattern, text)
		if err != nil {
			if _, bad := regexp.Compile(pattern); bad != nil && !strings.Contains(err.Error(), "error parsing") {
				t.Fatalf("%q: %v, and regexp says %v", pattern, err, bad)
			}
			return
		}
		want := string(s.regex.ReplaceAll([]byte(in), s.template))
		if got := string(m.Append(nil, []byte(in), s)); got != want {
			t.Fatalf("%q to %q of %q: got %q, want %q", pattern, text, in, got, want)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	s, err := New("^/users/([0-9]+)/(.*)$", `/people/\1/\2`)
	if err != nil {
		b.Fatal(err)
	}
	path, dst := []byte("/users/1234567/basket/7"), make([]byte, 0, 256)
	b.Run("here", func(b *testing.B) {
		var m Machine
		b.ReportAllocs()
		for b.Loop() {
			dst = m.Append(dst[:0], path, s)
		}
	})
	b.Run("regexp", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			dst = append(dst[:0], s.regex.ReplaceAll(path, s.template)...)
		}
	})
}
