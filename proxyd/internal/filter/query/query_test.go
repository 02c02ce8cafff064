package query

import (
	"bytes"
	"net/url"
	"testing"
)

func TestWithout(t *testing.T) {
	for _, row := range [][2]string{
		{"/", "/"},
		{"/?", "/?"},
		{"/?a=1", "/"},
		{"/a?b=a&a=1&c", "/a?b=a&c"},
		{"/?%61=1&a&aa=1&A=1&=a", "/?aa=1&A=1&=a"},
		{"/?b&&a=1", "/?b&"},
	} {
		got, changed := Without(nil, []byte(row[0]), []byte("a"))
		if string(got) != row[1] || changed != (row[0] != row[1]) {
			t.Errorf("%q without a is %q, not %q (%v)", row[0], got, row[1], changed)
		}
	}
}

func TestWith(t *testing.T) {
	for _, row := range [][2]string{
		{"/", "/?a=x%20%26y"},
		{"/?", "/?a=x%20%26y"},
		{"/?a=1", "/?a=x%20%26y"},
		{"/?b=1&%61=2&a", "/?b=1&a=x%20%26y"},
		{"/??", "/??&a=x%20%26y"},
		{"/?b&", "/?b&a=x%20%26y"},
	} {
		if got := With(nil, []byte(row[0]), []byte("a"), []byte("x &y")); string(got) != row[1] {
			t.Errorf("%q is %q, not %q", row[0], got, row[1])
		}
	}
}

// FuzzWith: who reads the query finds one value, the one that was set, and what else there was.
func FuzzWith(f *testing.F) {
	f.Add("/?b=1&%61=2&a", "a", "x &y")
	f.Add("??", "0", "é")
	f.Fuzz(func(t *testing.T, path, name, value string) {
		if name == "" {
			return
		}
		got := With(nil, []byte(path), []byte(name), []byte(value))
		before, _, _ := bytes.Cut([]byte(path), []byte("?"))
		if !bytes.HasPrefix(got, append(before, '?')) {
			t.Fatalf("%q is %q", path, got)
		}
		n := 0
		for list := Of(got); len(list) > 0; {
			var item []byte
			item, list = Cut(list, '&')
			key, text, _ := bytes.Cut(item, equals)
			if !Spells(key, []byte(name)) {
				continue
			}
			n++
			if plain, err := url.PathUnescape(string(text)); err != nil || plain != value {
				t.Errorf("%q of %q is %q (%v)", value, got, plain, err)
			}
		}
		if n != 1 {
			t.Errorf("%q has %q %d times", got, name, n)
		}
	})
}
