package header

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestLookupIsPerfect(t *testing.T) {
	used := map[uint64]ID{}
	for id := Other + 1; id < NumIDs; id++ {
		name := canonicalNames[id]
		if len(name) < 2 || len(name) > maxKnownName {
			t.Errorf("%q has a length that Lookup does not look for", name)
			continue
		}
		s := slot(nameKeys[id].first, nameKeys[id].last, len(name))
		if other, taken := used[s]; taken {
			t.Errorf("%v and %v share a slot: search another slotFactor", id, other)
		}
		used[s] = id
		for _, spelled := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			if got := Lookup([]byte(spelled)); got != id {
				t.Errorf("%q: got %v", spelled, got)
			}
		}
		// One bit anywhere makes it another name, unless it is the bit of a letter's case.
		for i := range len(name) {
			for bit := range 8 {
				near := []byte(strings.ToLower(name))
				near[i] ^= 1 << bit
				if strings.EqualFold(string(near), name) {
					continue
				}
				if got := Lookup(near); got == id {
					t.Errorf("%q is taken for %q", near, name)
				}
			}
		}
		if got := Lookup([]byte(name + "x")); got == id {
			t.Errorf("%q with a letter behind it is taken for itself", name)
		}
	}
}

// TestStaticTable holds the correspondence with HPACK at its two ends and in its middle.
func TestStaticTable(t *testing.T) {
	for index, name := range map[int]string{15: "accept-charset", 28: "content-length", 38: "host", 57: "transfer-encoding", 61: "www-authenticate"} {
		if got := ID(index - 14).String(); got != name {
			t.Errorf("static index %d is %q, want %q", index, got, name)
		}
	}
}

func show(b *Block) string {
	var s strings.Builder
	size := 0
	for i := range b.Len() {
		id, name, value := b.At(i)
		if id != Lookup(name) || !b.Has(id) {
			return "inconsistent"
		}
		size += len(name) + len(value)
		fmt.Fprintf(&s, "%s=%s;", name, value)
	}
	for id := Other; id < NumIDs; id++ {
		if b.Has(id) != (b.Index(id, 0) >= 0) {
			return "presence bit of " + id.String()
		}
	}
	if size != b.Bytes() {
		return fmt.Sprintf("%d bytes, Bytes says %d", size, b.Bytes())
	}
	return s.String()
}

func TestBlock(t *testing.T) {
	var b Block
	b.AddString(Accept, "", "x")
	b.AddString(Other, "X-Foo", "1")
	b.AddString(Other, "ACCEPT", "y")
	b.AddString(Other, "x-foo", "2")
	b.AddString(Cookie, "", "")
	steps := []struct {
		do   func() any
		want string
		got  any
	}{
		{func() any { return b.Count(Accept) }, "accept=x;x-foo=1;accept=y;x-foo=2;cookie=;", 2},
		{func() any { return string(b.GetName([]byte("X-FOO"))) }, "accept=x;x-foo=1;accept=y;x-foo=2;cookie=;", "1"},
		{func() any { return b.Get(Cookie) != nil && b.Get(Host) == nil && b.GetName([]byte("x-none")) == nil }, "accept=x;x-foo=1;accept=y;x-foo=2;cookie=;", true},
		{func() any { return b.SetString(Other, "X-foo", "three") }, "accept=x;x-foo=three;accept=y;cookie=;", true},
		{func() any { return b.SetString(Accept, "", "z") }, "accept=z;x-foo=three;cookie=;", true},
		{func() any { return b.SetString(Other, "Cookie", "c") }, "accept=z;x-foo=three;cookie=c;", true},
		{func() any { return b.SetString(Other, "x-new", "") }, "accept=z;x-foo=three;cookie=c;x-new=;", true},
		{func() any { return b.RemoveName([]byte("X-Foo")) }, "accept=z;cookie=c;x-new=;", 1},
		{func() any { return b.RemoveID(Accept) }, "cookie=c;x-new=;", 1},
		{func() any { return b.RemoveID(Accept) }, "cookie=c;x-new=;", 0},
		{func() any { b.RemoveAt(0); return b.Has(Cookie) }, "x-new=;", false},
		{func() any { b.RemoveAt(0); return b.Has(Other) }, "", false},
	}
	for i, s := range steps {
		if got := s.do(); got != s.got {
			t.Errorf("step %d: got %v, want %v", i, got, s.got)
		}
		if got := show(&b); got != s.want {
			t.Errorf("step %d: block %s, want %s", i, got, s.want)
		}
	}
}

func TestRefusedFields(t *testing.T) {
	var b Block
	b.AddString(Accept, "", "kept")
	for _, c := range []struct{ name, value string }{
		{"", "x"},
		{"a b", "x"},
		{"a:", "x"},
		{":path", "/"},
		{"a\r\n", "x"},
		{"ä", "x"},
		{"a", "x\r\nb: c"},
		{"a", "12345678\n"},
		{"a", "1234567\r12345678"},
		{"a", "\x00"},
		{"a", "\x7f1234567"},
		{"accept", "\n"},
		{"host", "a\x01"},
	} {
		if b.AddString(Other, c.name, c.value) || b.SetString(Other, c.name, c.value) {
			t.Errorf("%q: %q is accepted", c.name, c.value)
		}
	}
	if b.SetAt(0, []byte("a\nb")) || show(&b) != "accept=kept;" {
		t.Error(show(&b))
	}
	var r Request
	if r.SetPath([]byte("/a b")) || r.SetPath([]byte("/a\r\nX: y")) || r.SetAuthority([]byte("a\r\n")) ||
		r.SetMethod([]byte("GET /")) || r.SetScheme([]byte("a b")) || r.SetProtocol([]byte("")) {
		t.Error("a request line that is none is accepted")
	}
	var p Response
	if p.SetReason([]byte("OK\r\nX: y")) {
		t.Error("a reason with a line end is accepted")
	}
}

// TestValueEnd compares with the definition, at every length and place around the eight bytes of a word.
func TestValueEnd(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				p := bytes.Repeat([]byte("v"), n)
				p[at] = byte(c)
				want := n
				if (c < 0x20 && c != '\t') || c == 0x7f {
					want = at
				}
				if got := ValueEnd(p, 0); got != want {
					t.Fatalf("%q: got %d, want %d", p, got, want)
				}
				want = n
				if c <= 0x20 || c >= 0x7f || c == '#' {
					want = at
				}
				if got := TargetEnd(p, 0); got != want {
					t.Fatalf("target %q: got %d, want %d", p, got, want)
				}
			}
		}
	}
}

func TestEditsKeepOldSlices(t *testing.T) {
	var b Block
	b.AddString(Accept, "", "first")
	b.AddString(Other, "x-a", "second")
	accept, other := b.Get(Accept), b.GetName([]byte("x-a"))
	for i := range 200 {
		b.SetString(Accept, "", strings.Repeat("z", i))
		b.AddString(Other, fmt.Sprintf("x-%d", i), strings.Repeat("y", i))
	}
	if string(accept) != "first" || string(other) != "second" || string(b.GetName([]byte("x-a"))) != "second" {
		t.Errorf("%q %q", accept, other)
	}
	_ = append(b.ValueAt(1), "overrun"...)
	if got := string(b.ValueAt(2)); got != "" {
		t.Errorf("appending to a value wrote over its neighbour: %q", got)
	}
}

func TestBounds(t *testing.T) {
	var b Block
	big := bytes.Repeat([]byte("v"), 300<<10)
	for i := range 3 {
		if !b.Add(Cookie, nil, big) {
			t.Fatalf("field %d of %d bytes is refused", i, len(big))
		}
	}
	if b.Add(Cookie, nil, big) || b.SetAt(0, big) {
		t.Error("the arena grows above its bound")
	}
	if !bytes.Equal(b.ValueAt(2), big) {
		t.Error("a value changed")
	}
	if b.Add(Other, bytes.Repeat([]byte("n"), maxNameLen+1), nil) {
		t.Error("a name longer than a span can say is accepted")
	}
	b.Reset()
	if cap(b.arena) > retainBytes || b.Len() != 0 || b.Bytes() != 0 || b.Has(Cookie) {
		t.Error("Reset keeps too much")
	}
	for range MaxFields {
		b.AddString(Age, "", "")
	}
	if b.AddString(Age, "", "") {
		t.Error("more fields than the bound")
	}
}

func TestTokens(t *testing.T) {
	var b Block
	b.AddString(Connection, "", " a , ,Close")
	b.AddString(Connection, "", "\tupgrade")
	for token, want := range map[string]bool{"a": true, "close": true, "upgrade": true, "b": false, "": false, "clos": false} {
		if got := b.HasToken(Connection, token); got != want {
			t.Errorf("%q: %v", token, got)
		}
	}
}

func TestCopyFrom(t *testing.T) {
	var a, b Request
	a.SetMethod([]byte("PURGE"))
	a.SetPath([]byte("/x?y"))
	a.SetAuthority([]byte("h"))
	a.SetScheme([]byte("https"))
	a.AddString(Other, "x-a", "1")
	b.CopyFrom(&a)
	a.Reset()
	a.AddString(Other, "zzzzzz", "zzzzzzzzzzzzzzzzzzzzzz")
	if string(b.Method()) != "PURGE" || string(b.PathOnly()) != "/x" || string(b.Authority()) != "h" ||
		string(b.Scheme()) != "https" || show(&b.Block) != "x-a=1;" {
		t.Errorf("%s %s %s %s %s", b.Method(), b.Path(), b.Authority(), b.Scheme(), show(&b.Block))
	}
}

// FuzzBlock runs a program of edits on a block and on a plain list.
func FuzzBlock(f *testing.F) {
	f.Add([]byte("aXa1aYb2sXc3rX.iA0"))
	f.Add([]byte("aAx1aAy2sAz3tA.aPqqk0."))
	f.Fuzz(func(t *testing.T, program []byte) {
		names := []string{"accept", "x-one", "cookie", "x-two", "host", "bad name"}
		type pair struct{ name, value string }
		var model []pair
		var b Block
		for ; len(program) >= 3; program = program[3:] {
			name := names[int(program[1])%len(names)]
			given := string(program[2:3])
			value := string(TrimSpace([]byte(given)))
			valid := name != "bad name" && ValidValue([]byte(value))
			switch program[0] % 4 {
			case 0:
				if b.AddString(Other, strings.ToUpper(name), given) {
					model = append(model, pair{name, value})
				} else if valid {
					t.Fatalf("%q=%q is refused", name, value)
				}
			case 1:
				if b.SetString(Lookup([]byte(name)), name, given) != valid {
					t.Fatalf("set %q=%q: %v", name, value, !valid)
				}
				if !valid {
					break
				}
				first := -1
				var kept []pair
				for _, p := range model {
					if p.name == name {
						if first >= 0 {
							continue
						}
						first = len(kept)
						p.value = value
					}
					kept = append(kept, p)
				}
				if model = kept; first < 0 {
					model = append(model, pair{name, value})
				}
			case 2:
				b.RemoveName([]byte(name))
				var kept []pair
				for _, p := range model {
					if p.name != name {
						kept = append(kept, p)
					}
				}
				model = kept
			case 3:
				if len(model) > 0 {
					i := int(program[1]) % len(model)
					b.RemoveAt(i)
					model = append(model[:i:i], model[i+1:]...)
				}
			}
			want := ""
			for _, p := range model {
				want += p.name + "=" + p.value + ";"
			}
			if got := show(&b); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	names := [][]byte{[]byte("Host"), []byte("User-Agent"), []byte("Accept"), []byte("Accept-Encoding"), []byte("X-Custom-Trace"), []byte("Content-Type"), []byte("Cookie"), []byte("Connection")}
	for i := 0; b.Loop(); i++ {
		Lookup(names[i&7])
	}
}
