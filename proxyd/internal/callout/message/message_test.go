package message

import (
	"bytes"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestHeaderValue(t *testing.T) {
	for _, row := range []struct {
		name, field, value string
		message            []byte
		ok                 bool
	}{
		{"nothing", "", "", nil, true},
		{"a value", "x-a", "1", Text(Text(nil, 1, []byte("x-a")), 2, []byte("1")), true},
		{"a raw one goes before", "x-a", "raw", Text(Text(Text(nil, 3, []byte("raw")), 1, []byte("x-a")), 2, []byte("1")), true},
		{"other fields", "x-a", "", Number(Text(nil, 1, []byte("x-a")), 2, 5), true},
		{"cut off", "", "", []byte{0x0a, 0x02, 'x'}, false},
	} {
		name, value, ok := HeaderValue(row.message)
		if string(name) != row.field || string(value) != row.value || ok != row.ok {
			t.Errorf("%s: %q %q %v", row.name, name, value, ok)
		}
	}
}

// FuzzNext: reading comes to an end inside the message, and a text is UTF-8 whatever it was made of.
func FuzzNext(f *testing.F) {
	f.Add(Number(Text(nil, 1, []byte("a\xff")), 2, 300))
	f.Add([]byte{0x0b, 0x08, 0x01, 0x0c})
	f.Fuzz(func(t *testing.T, b []byte) {
		if text := Text(nil, 1, b); len(b) > 0 {
			_, _, value, rest, ok := Next(text)
			if !ok || len(rest) > 0 || len(value) != len(b) || !utf8.Valid(value) || utf8.Valid(b) && !bytes.Equal(value, b) {
				t.Errorf("%q became %q", b, value)
			}
		}
		for rest := b; len(rest) > 0; {
			n, kind, value, next, ok := Next(rest)
			if !ok {
				return
			}
			if n < 1 || len(next) >= len(rest) || len(value) > len(rest) || kind != protowire.VarintType && Varint(kind, value) != 0 {
				t.Fatalf("field %d of %q", n, rest)
			}
			rest = next
		}
	})
}
