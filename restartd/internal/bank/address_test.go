package bank

import (
	"slices"
	"strings"
	"testing"
)

func TestStoreNames(t *testing.T) {
	long := strings.Repeat("listener", 40)
	keys := []string{
		key("web", 0, parsed4("127.0.0.1:80")), key("web", 0, parsed4("[::1]:80")), key("web", 0, parsed4("0.0.0.0:0")),
		key("web", 1, parsed4("0.0.0.0:0")), key("web#1", 0, parsed4("0.0.0.0:0")), key(long, 0, parsed4("0.0.0.0:0")),
		key(long+"x", 0, parsed4("0.0.0.0:0")), escape("a:b"), escape("a%3Ab"), escape("a\nb"), escape("a/b"), escape("ü"),
	}
	for i, k := range keys {
		if slices.Index(keys, k) != i {
			t.Errorf("two keys share %q", k)
		}
		got, n, ok := splitStoreName(storeName(k, 12))
		if !ok || got != k || n != 12 || len(storeName(k, maxShards)) > 255 {
			t.Errorf("%q: back as %q %d %t", k, got, n, ok)
		}
	}
	for _, bad := range []string{"", "web", "socket/", "socket/a", "socket//1", "socket/a/-1", "socket/a/01", "socket/a/99999", "socket/a/x"} {
		if _, _, ok := splitStoreName(bad); ok {
			t.Errorf("%q taken for ours", bad)
		}
	}
}

func parsed4(s string) parsed {
	p, err := parse(s)
	if err != nil {
		panic(err)
	}
	return p
}

func TestHolder(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:0050 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   short
`
	for address, want := range map[string]string{"127.0.0.1:8080": "0.0.0.0:8080", "127.0.0.1:80": "", "127.0.0.1:8081": ""} {
		if got := holderIn(table, parsed4(address)); got != want {
			t.Errorf("%s held by %q, want %q", address, got, want)
		}
	}
	six := "0: 00000000000000000000000001000000:0050 0:0 0A\n"
	if got := holderIn(six, parsed4("[::1]:80")); got != "[::1]:80" {
		t.Errorf("held by %q", got)
	}
}

func FuzzProcAddress(f *testing.F) {
	for _, s := range []string{"0100007F:1F90", "00000000000000000000000001000000:0050", "", ":", "zz:1", "0100007F:12345"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, ok := parseProcAddress(s); ok && !p.ip.IsValid() {
			t.Errorf("%q gave an invalid address", s)
		}
	})
}

func FuzzStoreName(f *testing.F) {
	for _, s := range []string{"socket/127.0.0.1%3A80/0", "socket/a/1023", "web", "socket//0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if k, n, ok := splitStoreName(s); ok && storeName(k, n) != s {
			t.Errorf("%q came back as %q", s, storeName(k, n))
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"127.0.0.1:80", "[::]:0", "unix:/run/s", "[fe80::1%lo]:80", "unix:", ":80", "[::ffff:1.2.3.4]:5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parse(s)
		if err != nil {
			return
		}
		again, err := parse(p.String())
		if err != nil || again != p {
			t.Errorf("%q parsed to %s, which parses to %v %v", s, p, again, err)
		}
		if k := key("l", 0, p); len(storeName(k, maxShards)) > 255 {
			t.Errorf("%q has too long a name", s)
		}
	})
}
