package hpack

import (
	"strconv"
	"testing"

	"retinue.dev/proxyd/internal/header"
)

func typical() *header.Request {
	r := new(header.Request)
	r.SetMethodID(header.MethodGet)
	r.SetScheme([]byte("https"))
	r.SetAuthority([]byte("www.example.com"))
	r.SetPath([]byte("/static/images/logo-large.png?v=3f2a"))
	r.AddString(header.UserAgent, "", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0")
	r.AddString(header.Accept, "", "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5")
	r.AddString(header.AcceptLanguage, "", "en-US,en;q=0.5")
	r.AddString(header.AcceptEncoding, "", "gzip, deflate, br, zstd")
	r.AddString(header.Referer, "", "http://www.example.com/index.html")
	r.AddString(header.Cookie, "", "session=0123456789abcdef0123456789abcdef; theme=dark")
	r.AddString(header.Other, "x-custom-trace", "7c9e6679f3a4")
	return r
}

func TestDoesNotAllocate(t *testing.T) {
	r := typical()
	var back header.Request
	e, d := newEncoder(), newDecoder()
	dst := make([]byte, 0, 4096)
	i := 0
	round := func() {
		i++
		r.SetAt(0, strconv.AppendInt(dst[:0], int64(i), 10)) // another entry each time
		dst = e.AppendRequest(dst[:0], r)
		if _, err := d.Request(dst, &back, &DefaultLimits); err != nil {
			t.Fatal(err)
		}
		r.CopyFrom(&back)
	}
	for range 1000 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEncodeRequest(b *testing.B) {
	r := typical()
	e := newEncoder()
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = e.AppendRequest(dst[:0], r)
	}
	b.ReportMetric(float64(len(dst)), "bytes")
}

func BenchmarkDecodeRequest(b *testing.B) {
	e, d := newEncoder(), newDecoder()
	first := e.AppendRequest(nil, typical())
	var r header.Request
	if _, err := d.Request(first, &r, &DefaultLimits); err != nil {
		b.Fatal(err)
	}
	again := e.AppendRequest(nil, typical())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Request(again, &r, &DefaultLimits); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHuffmanDecode(b *testing.B) {
	in := appendHuffman(nil, []byte("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"))
	dst := make([]byte, 0, 256)
	for b.Loop() {
		dst, _ = appendHuffmanDecoded(dst[:0], in)
	}
}

func BenchmarkHuffmanEncode(b *testing.B) {
	in := []byte("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0")
	dst := make([]byte, 0, 256)
	for b.Loop() {
		dst = appendString(dst[:0], in)
	}
}
