package compress

import (
	"testing"

	"retinue.dev/proxyd/internal/header"
)

func TestChoose(t *testing.T) {
	ours := []Coding{Zstd, Brotli, Gzip}
	for _, row := range []struct {
		accept string
		want   Coding
	}{
		{"", None},
		{"gzip", Gzip},
		{"x-gzip", Gzip},
		{"GZIP, deflate, br", Brotli},
		{"gzip, deflate, br, zstd", Zstd},
		{"gzip;q=1.0, zstd;q=0.5", Gzip},
		{"gzip; q=0.001, br;q=0", Gzip},
		{"gzip;q=0", None},
		{"*", Zstd},
		{"*;q=0.5, gzip", Gzip},
		{"*, zstd;q=0", Brotli},
		{"identity, gzip;q=0.5", None},
		{"identity;q=0.1, gzip;q=0.5", Gzip},
		{"gzip;q=2", None},
		{"gzip;q=0.1234", None},
		{"gzip;q", None},
		{"gzip;level=9", None},
		{"deflate", None},
		{",,gzip,", Gzip},
	} {
		var h header.Block
		if row.accept != "" {
			h.AddString(header.AcceptEncoding, "", row.accept)
		}
		if got := Choose(&h, ours); got != row.want {
			t.Errorf("%q: %s, want %s", row.accept, names[got], names[row.want])
		}
	}
	var h header.Block // two fields are one list
	h.AddString(header.AcceptEncoding, "", "gzip;q=0.1")
	h.AddString(header.AcceptEncoding, "", "br;q=0.2")
	if got := Choose(&h, ours); got != Brotli {
		t.Errorf("two fields: %s", names[got])
	}
}

// Whatever a client writes, the answer is one that it names, or "*" does.
func FuzzChoose(f *testing.F) {
	f.Add("gzip;q=0.5, *;q=0")
	f.Fuzz(func(t *testing.T, accept string) {
		if !header.ValidValue([]byte(accept)) {
			return
		}
		var h header.Block
		h.AddString(header.AcceptEncoding, "", accept)
		got := Choose(&h, []Coding{Gzip})
		if got == None {
			return
		}
		for list := []byte(accept); ; {
			item, rest, more := header.NextToken(list)
			if !more {
				t.Fatalf("%q is taken for gzip", accept)
			}
			if token, q := weight(item); q > 0 && (string(token) == "*" || ParseCoding(token) == Gzip) {
				return
			}
			list = rest
		}
	})
}
