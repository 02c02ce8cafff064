package header

import (
	"strings"
	"testing"
)

func TestValidAuthority(t *testing.T) {
	for authority, want := range map[string]bool{
		"shop.example.com": true, "shop.example.com:80": true, "shop.example.com:": true, "shop.example.com.": true, "10.0.0.1:1": true,
		"a:65535": true, "a:65536": false, "a:099999": false, "a:-1": false, "a:80:80": false, ":80": false, "": false,
		"[::1]": true, "[::1]:80": true, "[::ffff:10.0.0.1]": true, "[0000:0000:0000:0000:0000:ffff:255.255.255.255]": true,
		"[::1": false, "::1": false, "[::1]x": false, "[]": false, "[1]": false, "[v1.a]": false, "[::1%25eth0]": false,
		"[" + strings.Repeat(":", 60_000) + "]": false,
		"a@b":                                   false, "a,b": false, "a/b": false, "a?b": false, "a b": false, "\xfc": false,
	} {
		if got := ValidAuthority([]byte(authority)); got != want {
			t.Errorf("%.40q: %v, want %v", authority, got, want)
		}
	}
}
