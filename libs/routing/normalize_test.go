package routing

import "testing"

func TestNormalizePath(t *testing.T) {
	for _, c := range []struct {
		in, want string // "" is refused
		merge    bool
	}{
		{"/", "/", false},
		{"/a/b", "/a/b", false},
		{"/a/./b/../c", "/a/c", false},
		{"/a/b/..", "/a/", false},
		{"/a/b/.", "/a/b/", false},
		{"/..", "/", false},
		{"/../../a", "/a", false},
		{"/%7Euser/%41%2d%2e%5f", "/~user/A-._", false},
		{"/a%2fb%5c%c3%a9", "/a%2Fb%5C%C3%A9", false},
		{"/a/%2e%2E/b", "/b", false},
		{"/a/%2e%2e?x=/../y", "/?x=/../y", false},
		{"//a///b//", "//a///b//", false},
		{"//a///b//", "/a/b/", true},
		{"/a//../b", "/a/b", false},
		{"/a//../b", "/b", true},
		{"/...", "/...", false},
		{"/..a/.b", "/..a/.b", false},
		{"/a;x/b", "/a;x/b", false},
		{"/a?%zz", "/a?%zz", false},
		{"/..;/a", "", false},
		{"/.;x", "", false},
		{"/%2e.;/a", "", false},
		{"", "", false},
		{"*", "", false},
		{"/%", "", false},
		{"/%4", "", false},
		{"/%4g", "", false},
		{"/%00", "", false},
		{`/a\b`, "", false},
		{"/a b", "", false},
	} {
		got, _, ok := NormalizePath([]byte("x"), []byte(c.in), c.merge, KeepSlashes)
		if string(got) != "x"+c.want || ok != (c.want != "") {
			t.Errorf("%q merge=%v: got %q %v, want %q", c.in, c.merge, got[1:], ok, c.want)
		}
	}
}

func TestEscapedSlashes(t *testing.T) {
	for _, c := range []struct {
		in      string
		escaped Slashes
		want    string // "" is refused
		decoded bool
	}{
		{"/a%2Fb", KeepSlashes, "/a%2Fb", false},
		{"/a%2fb", RejectSlashes, "", false},
		{"/a%5cb", RejectSlashes, "", false},
		{"/a?x=%2f", RejectSlashes, "/a?x=%2f", false},
		{"/a%2Fb?x=%2f", DecodeSlashes, "/a/b?x=%2f", true},
		{"/a%5C..%2fb", DecodeSlashes, "/b", true},
		{"/a%252Fb", DecodeSlashes, "/a%252Fb", false},
		{"/a%2", RejectSlashes, "", false},
		{"/a%2F%2", DecodeSlashes, "", false},
		{"/a/b", DecodeSlashes, "/a/b", false},
	} {
		got, decoded, ok := NormalizePath([]byte("x"), []byte(c.in), false, c.escaped)
		if string(got) != "x"+c.want || decoded != c.decoded || ok != (c.want != "") {
			t.Errorf("%q %d: got %q %v %v, want %q %v", c.in, c.escaped, got[1:], decoded, ok, c.want, c.decoded)
		}
	}
}

func FuzzNormalizePath(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e/x?y", "//a/.", "/a;b/..;c", "/%41%zz", "/a%2f..%5Cb"} {
		for escaped := range uint8(3) {
			f.Add([]byte(s), true, escaped)
			f.Add([]byte(s), false, escaped)
		}
	}
	f.Fuzz(func(t *testing.T, path []byte, merge bool, policy uint8) {
		escaped := Slashes(policy % 3)
		before := string(path)
		once, decoded, ok := NormalizePath(nil, path, merge, escaped)
		if string(path) != before {
			t.Fatalf("%q was changed to %q", before, path)
		}
		if !ok {
			if len(once) != 0 {
				t.Fatalf("%q: refused, yet %q", path, once)
			}
			return
		}
		if decoded && escaped != DecodeSlashes {
			t.Fatalf("%q: decoded without being asked", path)
		}
		twice, again, ok := NormalizePath(nil, once, merge, escaped)
		if !ok || again || string(twice) != string(once) {
			t.Fatalf("%q: %q, and again %q %v", path, once, twice, ok)
		}
		if len(once) == 0 || once[0] != '/' {
			t.Fatalf("%q: %q", path, once)
		}
	})
}
