package jwt

import (
	"fmt"
	"strings"
	"testing"

	"retinue.dev/libs/jwk"
)

func TestCache(t *testing.T) {
	keys := new(jwk.Set)
	c := &cache{most: 3}
	keep := func(name string) { c.keep(&verified{token: []byte(name), keys: keys}) }
	has := func(names string) {
		t.Helper()
		for _, name := range strings.Fields("a b c d e f " + strings.Repeat("x", maxKept) + " " + strings.Repeat("x", maxKept+1)) {
			want := strings.Contains(" "+names+" ", " "+name+" ")
			found := false
			for v := c.newest; v != nil; v = v.older { // without making it the newest
				found = found || string(v.token) == name
			}
			if found != want {
				t.Errorf("%.3s: %v", name, found)
			}
		}
		if len(c.entries) != len(strings.Fields(names)) {
			t.Errorf("%d entries", len(c.entries))
		}
	}
	if c.find([]byte("a"), keys) != nil {
		t.Error("found in nothing")
	}
	for _, name := range []string{"a", "b", "c"} {
		keep(name)
	}
	has("a b c")
	if v := c.find([]byte("a"), keys); v == nil || string(v.token) != "a" {
		t.Error("a is not found")
	}
	keep("d") // b is the oldest
	has("a c d")
	keep("c") // once more
	has("a c d")
	if c.find([]byte("b"), keys) != nil || c.find([]byte("aa"), keys) != nil {
		t.Error("what is not there is found")
	}
	keep("e")
	has("c d e")
	if c.find([]byte("d"), new(jwk.Set)) != nil {
		t.Error("found with other keys")
	}
	has("c e")
	keep(strings.Repeat("x", maxKept))
	keep(strings.Repeat("x", maxKept+1))
	has("c e " + strings.Repeat("x", maxKept))
	for v := c.newest; v != nil; v = c.newest {
		c.drop(v)
	}
	has("")
	if c.oldest != nil {
		t.Error("the list has an end")
	}
	for i := range 100 {
		keep(fmt.Sprint(i))
	}
	if len(c.entries) != 3 {
		t.Errorf("%d entries", len(c.entries))
	}

	none := &cache{}
	none.keep(&verified{token: []byte("a"), keys: keys})
	if none.find([]byte("a"), keys) != nil {
		t.Error("a cache of nothing has something")
	}
}
