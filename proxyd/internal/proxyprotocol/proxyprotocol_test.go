package proxyprotocol

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	for _, pair := range [][2]string{{"192.0.2.1:4711", "198.51.100.2:443"}, {"[2001:db8::1]:1", "[2001:db8::2]:65535"}, {"192.0.2.1:1", "[2001:db8::2]:2"}} {
		source, destination := netip.MustParseAddrPort(pair[0]), netip.MustParseAddrPort(pair[1])
		for version := 1; version <= 2; version++ {
			b := append(Append(nil, version, source, destination), "GET /"...)
			end := len(b) - 5
			for n := range end {
				if _, got, err := Parse(b[:n]); got != 0 || err != nil {
					t.Fatalf("%d bytes of %q: %d %v", n, b, got, err)
				}
			}
			h, n, err := Parse(b)
			if n != end || err != nil || h.Source != source && h.Source.Addr() != source.Addr() || h.Destination != destination {
				t.Errorf("%q: %v %d %v", b, h, n, err)
			}
		}
	}
	for version := 1; version <= 2; version++ {
		b := Append(nil, version, netip.AddrPort{}, netip.AddrPort{})
		if h, n, err := Parse(b); n != len(b) || err != nil || h.Source.IsValid() {
			t.Errorf("%q: %v %d %v", b, h, n, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]error{
		"GET / HTTP/1.1\r\n": ErrAbsent, "PROXX": ErrAbsent, "\r\n\r\nX": ErrAbsent,
		"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n":                     ErrMalformed,
		"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n":                     ErrMalformed,
		"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n":                 ErrMalformed,
		"PROXY TCP4 ::1 5.6.7.8 1 2\r\n":                       ErrMalformed,
		"PROXY TCP6 1.2.3.4 ::1 1 2\r\n":                       ErrMalformed,
		"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n":                  ErrMalformed,
		"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n":               ErrMalformed,
		"PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n":                    ErrMalformed,
		"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n":                   ErrMalformed,
		"PROXY " + strings.Repeat("x", 120):                    ErrMalformed,
		string(signature) + "\x11\x11\x00\x0c":                 ErrMalformed,
		string(signature) + "\x21\x11\xff\xff":                 ErrMalformed,
		string(signature) + "\x21\x11\x00\x04\x01\x02\x03\x04": ErrMalformed,
	} {
		if _, n, err := Parse([]byte(text)); n != 0 || !errors.Is(err, want) {
			t.Errorf("%q: %d %v", text, n, err)
		}
	}
	for _, text := range []string{"PROXY UNKNOWN\r\n", "PROXY UNKNOWN a b c d e f g\r\n", string(signature) + "\x21\x31\x00\x02ab"} {
		if h, n, err := Parse([]byte(text)); n != len(text) || err != nil || h.Source.IsValid() {
			t.Errorf("%q: %v %d %v", text, h, n, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"))
	f.Add(Append(nil, 2, netip.MustParseAddrPort("[::1]:1"), netip.MustParseAddrPort("[::2]:2")))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if n > len(b) || n > MaxSize || n > 0 && err != nil {
			t.Fatal(h, n, err)
		}
		if n == 0 && err == nil && len(b) >= MaxSize {
			t.Fatal("more is asked for than a header has")
		}
		if n > 0 { // what follows changes nothing
			if again, m, err := Parse(b[:n]); m != n || err != nil || again != h {
				t.Fatal(again, m, err)
			}
		}
		if h.Source.IsValid() {
			for version := 1; version <= 2; version++ {
				again, _, err := Parse(Append(nil, version, h.Source, h.Destination))
				if err != nil || again.Source.Addr().Unmap() != h.Source.Addr().Unmap() || again.Source.Port() != h.Source.Port() {
					t.Fatal(again, err)
				}
			}
		}
	})
}
