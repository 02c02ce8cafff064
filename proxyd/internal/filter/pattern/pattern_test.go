package pattern

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMatch(t *testing.T) {
	for _, row := range []struct {
		patterns string
		value    string
		want     bool
	}{
		{"https://shop.example.com", "https://shop.example.com", true},
		{"https://shop.example.com", "https://shop.example.com.", false},
		{"https://*.example.com", "https://a.example.com", true},
		{"https://*.example.com", "https://a.b.example.com", true},
		{"https://*.example.com", "https://example.com", false},
		{"/admin/*", "/admin/", true},
		{"/admin/*", "/admin", false},
		{"ab*ba", "aba", false},
		{"*", "", true},
		{"~https://(a|b)\\.example", "https://b.example", true},
		{"~https://(a|b)\\.example", "https://b.example.org", false},
		{"~a|b", "ab", false},
	} {
		l, err := Compile([]string{"other", row.patterns})
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Match([]byte(row.value)); got != row.want {
			t.Errorf("%q on %q: %v", row.patterns, row.value, got)
		}
	}
	for _, bad := range []string{"", "a*b*c", "~(", "~a)|(b"} {
		if _, err := Compile([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if any, _ := Compile([]string{"a", "*"}); !any.Any() {
		t.Error("\"*\" is not any")
	}
	if some, _ := Compile([]string{"a*"}); some.Any() {
		t.Error("\"a*\" is any")
	}
}

// A star is any text: what the expression of the same meaning says.
func FuzzStar(f *testing.F) {
	f.Add("https://*.example.com", "https://a.example.com")
	f.Add("ab*ba", "aba")
	f.Add("*", "")
	f.Fuzz(func(t *testing.T, text, value string) {
		l, err := Compile([]string{text})
		if err != nil || strings.HasPrefix(text, "~") {
			return
		}
		head, tail, star := strings.Cut(text, "*")
		expression := regexp.QuoteMeta(head)
		if star {
			expression += `(?s:.*)` + regexp.QuoteMeta(tail)
		}
		want, err := regexp.MatchString(`\A`+expression+`\z`, value)
		if err != nil || !utf8.ValidString(text+value) {
			return // expressions know only UTF-8
		}
		if got := l.Match([]byte(value)); got != want {
			t.Errorf("%q on %q: %v", text, value, got)
		}
	})
}
