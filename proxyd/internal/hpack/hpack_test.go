package hpack

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	xhpack "golang.org/x/net/http2/hpack"

	"retinue.dev/proxyd/internal/header"
)

func newDecoder() *Decoder {
	d := new(Decoder)
	d.Init(DefaultTableSize)
	return d
}

func newEncoder() *Encoder {
	e := new(Encoder)
	e.Init()
	return e
}

func show(b *header.Block) string {
	var s strings.Builder
	for i := range b.Len() {
		id, name, value := b.At(i)
		if id != header.Lookup(name) {
			s.WriteString("WRONG-ID ")
		}
		fmt.Fprintf(&s, "%s=%q;", name, value)
	}
	return s.String()
}

func showRequest(r *header.Request) string {
	return fmt.Sprintf("%s %s %s %s %q|%s", r.Method(), r.Scheme(), r.Authority(), r.Path(), r.Protocol(), show(&r.Block))
}

func TestHuffmanCodeIsCanonical(t *testing.T) {
	for n := 5; n < maxCodeBits; n++ {
		limit := uint64(0)
		for c := range 256 {
			if int(huffBits[c]) == n {
				limit = max(limit, uint64(huffCodes[c]+1)<<(32-n))
			}
		}
		for c := range 256 {
			if int(huffBits[c]) > n && uint64(huffCodes[c])<<(32-huffBits[c]) < limit {
				t.Errorf("the word of %#x is below one of %d bits", c, n)
			}
		}
	}
	for n := fastBits + 1; n <= maxCodeBits; n++ {
		if huffLong.limit[n] != 0 && huffLong.limit[n] <= uint64(huffLong.first[n])<<(32-n) {
			t.Errorf("words of %d bits are out of order", n)
		}
	}
}

func TestHuffman(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		s := make([]byte, r.IntN(40))
		for i := range s {
			s[i] = byte(r.UintN(256))
			if r.IntN(3) > 0 {
				s[i] = "abcdefghij/012 :-"[r.IntN(17)]
			}
		}
		want := xhpack.AppendHuffmanString(nil, string(s))
		got := appendHuffman([]byte("x"), s)
		if !bytes.Equal(got[1:], want) || huffmanLen(s) != len(want) {
			t.Fatalf("%q: got %x, want %x", s, got[1:], want)
		}
		back, ok := appendHuffmanDecoded([]byte("y"), want)
		if !ok || string(back) != "y"+string(s) {
			t.Fatalf("%q: back as %q %v", s, back, ok)
		}
	}
}

func FuzzHuffman(f *testing.F) {
	for _, s := range []string{"f1e3c2e5f23a6ba0ab90f4ff", "ff", "ffff", "fffffffc", "00", "07", "1fffffff", "f8", ""} {
		b, _ := hex.DecodeString(s)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		want, err := xhpack.HuffmanDecodeToString(in)
		got, ok := appendHuffmanDecoded(nil, in)
		if ok != (err == nil) || (ok && string(got) != want) {
			t.Fatalf("%x: got %q %v, want %q %v", in, got, ok, want, err)
		}
	})
}

// TestRFC7541 decodes the three requests of appendix C.4, which share a dynamic table, and checks the table's size.
func TestRFC7541(t *testing.T) {
	d := newDecoder()
	for i, c := range []struct {
		in, want string
		size     int
	}{
		{"828684418cf1e3c2e5f23a6ba0ab90f4ff", `GET http www.example.com / ""|`, 57},
		{"828684be5886a8eb10649cbf", `GET http www.example.com / ""|cache-control="no-cache";`, 110},
		{"828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", `GET https www.example.com /index.html ""|custom-key="custom-value";`, 164},
	} {
		in, _ := hex.DecodeString(c.in)
		var r header.Request
		length, err := d.Request(in, &r, &DefaultLimits)
		if err != nil || length != -1 || showRequest(&r) != c.want || d.table.size != c.size {
			t.Errorf("%d: %s, length %d, table %d, %v; want %s, table %d", i, showRequest(&r), length, d.table.size, err, c.want, c.size)
		}
	}
	// Appendix C.6: responses, with evictions from a table of 256.
	d.Init(256)
	for i, c := range []struct {
		in, want string
		size     int
	}{
		{"488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3", `302|cache-control="private";date="Mon, 21 Oct 2013 20:13:21 GMT";location="https://www.example.com";`, 222},
		{"4883640effc1c0bf", `307|cache-control="private";date="Mon, 21 Oct 2013 20:13:21 GMT";location="https://www.example.com";`, 222},
		{"88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007", `200|cache-control="private";date="Mon, 21 Oct 2013 20:13:22 GMT";location="https://www.example.com";content-encoding="gzip";set-cookie="foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";`, 215},
	} {
		in, _ := hex.DecodeString(c.in)
		var r header.Response
		_, err := d.Response(in, &r, &DefaultLimits)
		if got := fmt.Sprintf("%d|%s", r.Status, show(&r.Block)); err != nil || got != c.want || d.table.size != c.size {
			t.Errorf("%d: %s, table %d, %v; want %s, table %d", i, got, d.table.size, err, c.want, c.size)
		}
	}
}

// section encodes "name: value" lines by x/net.
func section(lines ...string) []byte {
	var b bytes.Buffer
	e := xhpack.NewEncoder(&b)
	for _, line := range lines {
		name, value, _ := strings.Cut(line[1:], ": ")
		e.WriteField(xhpack.HeaderField{Name: line[:1] + name, Value: value})
	}
	return b.Bytes()
}

var get = []string{":method: GET", ":scheme: https", ":path: /", ":authority: a"}

func with(lines ...string) []string { return append(get[:len(get):len(get)], lines...) }

func TestRequestRules(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  string // a request, or the detail of an error
	}{
		{with("x-a: 1", "te: trailers", "content-length: 5"), `GET https a / ""|x-a="1";te="trailers";content-length="5";`},
		{with("cookie: a=b", "x: y", "cookie: c=d"), `GET https a / ""|x="y";cookie="a=b; c=d";`},
		{with("host: a"), `GET https a / ""|`},
		{[]string{":method: GET", ":scheme: http", ":path: /x?y", "host: b:80"}, `GET http b:80 /x?y ""|`},
		{[]string{":method: CONNECT", ":authority: a:443"}, `CONNECT  a:443  ""|`},
		{[]string{":method: CONNECT", ":protocol: websocket", ":scheme: https", ":path: /ws", ":authority: a"}, `CONNECT https a /ws "websocket"|`},
		{[]string{":method: OPTIONS", ":scheme: https", ":path: *", ":authority: a"}, `OPTIONS https a * ""|`},
		{with("x: "), `GET https a / ""|x="";`},

		{with("X-A: 1"), "invalid_header_name"},
		{with("Accept: 1"), "invalid_header_name"},
		{with("x a: 1"), "invalid_header_name"},
		{with("x:a: 1"), "invalid_header_name"},
		{with("x\n: 1"), "invalid_header_name"},
		{with(":unknown: 1"), "invalid_header_name"},
		{with("x: a\r\nb: c"), "invalid_characters"},
		{with("x: a\x00"), "invalid_characters"},
		{with("x:  a"), "invalid_characters"},
		{with("x: a\t"), "invalid_characters"},
		{with("connection: close"), "connection_specific_header"},
		{with("keep-alive: 1"), "connection_specific_header"},
		{with("proxy-connection: 1"), "connection_specific_header"},
		{with("transfer-encoding: chunked"), "connection_specific_header"},
		{with("upgrade: h2c"), "connection_specific_header"},
		{with("te: gzip"), "invalid_te"},
		{with("te: trailers, gzip"), "invalid_te"},
		{with(":path: /b"), "duplicate_pseudo_header"},
		{with(":status: 200"), "invalid_pseudo_header"},
		{[]string{":method: GET", "x: y", ":scheme: https", ":path: /", ":authority: a"}, "pseudo_header_after_header"},
		{get[1:], "missing_pseudo_header"},
		{[]string{":method: GET", ":path: /", ":authority: a"}, "missing_pseudo_header"},
		{[]string{":method: GET", ":scheme: https", ":authority: a"}, "missing_pseudo_header"},
		{[]string{":method: GET", ":scheme: https", ":path: /"}, "missing_pseudo_header"},
		{[]string{":method: GET", ":scheme: https", ":path: ", ":authority: a"}, "invalid_url"},
		{[]string{":method: GET", ":scheme: https", ":path: a", ":authority: a"}, "invalid_url"},
		{[]string{":method: GET", ":scheme: https", ":path: *", ":authority: a"}, "invalid_url"},
		{[]string{":method: GET", ":scheme: https", ":path: /a b", ":authority: a"}, "invalid_url"},
		{[]string{":method: GET", ":scheme: https", ":path: / HTTP/1.1", ":authority: a"}, "invalid_url"},
		{[]string{":method: GET", ":scheme: https", ":path: /#", ":authority: a"}, "invalid_url"},
		{[]string{":method: GET /", ":scheme: https", ":path: /", ":authority: a"}, "invalid_method"},
		{[]string{":method: ", ":scheme: https", ":path: /", ":authority: a"}, "invalid_method"},
		{[]string{":method: GET", ":scheme: ftp", ":path: /", ":authority: a"}, "invalid_scheme"},
		{[]string{":method: GET", ":scheme: https", ":path: /", ":authority: a/b"}, "invalid_authority"},
		{[]string{":method: GET", ":scheme: https", ":path: /", ":authority: u@a"}, "invalid_authority"},
		{[]string{":method: GET", ":scheme: https", ":path: /", ":authority: "}, "invalid_authority"},
		{[]string{":method: GET", ":scheme: https", ":path: /", "host: a,b"}, "invalid_authority"},
		{[]string{":method: CONNECT", ":authority: a"}, "invalid_authority"},
		{[]string{":method: CONNECT"}, "missing_pseudo_header"},
		{[]string{":method: CONNECT", ":scheme: https", ":path: /", ":authority: a:1"}, "invalid_pseudo_header"},
		{[]string{":method: GET", ":protocol: websocket", ":scheme: https", ":path: /", ":authority: a"}, "invalid_pseudo_header"},
		{with("host: b"), "host_and_authority_differ"},
		{with("host: a", "host: a"), "host_and_authority_differ"},
		{with("content-length: 5", "content-length: 5"), "invalid_content_length"},
		{with("content-length: +5"), "invalid_content_length"},
		{with("content-length: "), "invalid_content_length"},
		{with("content-length: 9999999999999999999"), "invalid_content_length"},
		{with("x: " + strings.Repeat("v", 61<<10)), "headers_too_large"},
		{with(strings.Fields(strings.Repeat("x ", 101))...), "too_many_headers"},
	} {
		d := newDecoder()
		var r header.Request
		length, err := d.Request(section(c.lines...), &r, &DefaultLimits)
		got := ""
		if err != nil {
			got = strings.TrimPrefix(err.Detail, "http2.")
			if err.Compression || (err.Status == 431) != (err == errTooLarge || err == errTooMany) {
				t.Errorf("%.200q: %+v", c.lines, err)
			}
		} else if got = showRequest(&r); (length == 5) != r.Has(header.ContentLength) {
			t.Errorf("%.200q: length %d", c.lines, length)
		}
		if got != c.want {
			t.Errorf("%.200q:\ngot  %s\nwant %s", c.lines, got, c.want)
		}
	}
}

func TestResponseAndTrailerRules(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  *Error
	}{
		{[]string{":status: 200", "x: y"}, nil},
		{[]string{":status: 103"}, nil},
		{[]string{":status: 101"}, errStatus},
		{[]string{":status: 20"}, errStatus},
		{[]string{":status: 2000"}, errStatus},
		{[]string{":status: 099"}, errStatus},
		{[]string{":status: 2x0"}, errStatus},
		{[]string{"x: y"}, errMissing},
		{[]string{":status: 200", ":status: 200"}, errPseudoTwice},
		{[]string{":status: 200", ":path: /"}, errPseudo},
		{[]string{"x: y", ":status: 200"}, errPseudoLate},
		{[]string{":status: 200", "te: trailers"}, errTE},
		{[]string{":status: 200", "connection: close"}, errConnection},
	} {
		var r header.Response
		if _, err := newDecoder().Response(section(c.lines...), &r, &DefaultLimits); err != c.want {
			t.Errorf("%q: got %v, want %v", c.lines, err, c.want)
		}
	}
	var b header.Block
	if err := newDecoder().Trailers(section("grpc-status: 0"), &b, &DefaultLimits); err != nil || show(&b) != `grpc-status="0";` {
		t.Error(err, show(&b))
	}
	if err := newDecoder().Trailers(section("x: y", ":status: 200"), &b, &DefaultLimits); err != errPseudoLate {
		t.Error(err)
	}
	if err := newDecoder().Trailers(section(":status: 200"), &b, &DefaultLimits); err != errPseudo {
		t.Error(err)
	}
}

func TestCompressionErrors(t *testing.T) {
	for in, want := range map[string]*Error{
		"80":                 errIndex,
		"be":                 errIndex,
		"ff80808001":         errIndex,
		"ffffffffff0f":       errInteger,
		"ff80808080808000":   errInteger,
		"ff":                 errTruncated,
		"7e":                 errIndex,
		"40":                 errTruncated,
		"4003616263":         errTruncated,
		"40036162":           errTruncated,
		"0081ff0161":         errHuffman, // eight bits of padding
		"0081fe0161":         errHuffman,
		"0084fffffffc0161":   errHuffman,
		"82203f":             errTableSize,
		"2020203f":           errTableSize,
		"3fe21f":             errTableSize, // 4097
		"3fe11f82":           nil,          // 4096
		"203fe11f82":         nil,
		"00017f01":           errTruncated,
		"00ffffffff7f016161": errTruncated,
	} {
		bytes, _ := hex.DecodeString(in)
		var b header.Block
		err := newDecoder().Discard(bytes, &b)
		if err != want {
			t.Errorf("%s: got %v, want %v", in, err, want)
		}
		if err != nil && !err.Compression {
			t.Errorf("%s: %v is not fatal", in, err)
		}
	}
}

// TestTableAfterFault: a section that is refused or discarded still moves the table.
func TestTableAfterFault(t *testing.T) {
	var buf bytes.Buffer
	x := xhpack.NewEncoder(&buf)
	write := func(lines ...string) []byte {
		buf.Reset()
		for _, line := range lines {
			name, value, _ := strings.Cut(line[1:], ": ")
			x.WriteField(xhpack.HeaderField{Name: line[:1] + name, Value: value})
		}
		return bytes.Clone(buf.Bytes())
	}
	d := newDecoder()
	var r header.Request
	if _, err := d.Request(write("x: bad\n", ":method: GET", "y-name: kept"), &r, &DefaultLimits); err != errValue {
		t.Fatal(err)
	}
	var b header.Block
	if err := d.Discard(write("z-name: also", "BAD: x"), &b); err != nil || b.Len() != 0 {
		t.Fatal(err, b.Len())
	}
	if _, err := d.Request(write(with("y-name: kept", "z-name: also", "x: good")...), &r, &DefaultLimits); err != nil ||
		showRequest(&r) != `GET https a / ""|y-name="kept";z-name="also";x="good";` {
		t.Fatal(err, showRequest(&r))
	}
	if _, err := d.Request(write(with("x: bad\n")...), &r, &DefaultLimits); err != errValue {
		t.Fatal(err)
	}
	if _, err := d.Request(write(with("BAD: y")...), &r, &DefaultLimits); err != errName {
		t.Fatal(err)
	}
}

// TestBomb sends a large entry and then only its index: the limit holds whatever the expansion, and costs no memory.
func TestBomb(t *testing.T) {
	d := newDecoder()
	bomb := append([]byte{0x40, 1, 'x', 0x7f, 0x80, 0x1e}, bytes.Repeat([]byte("v"), 0x7f+0xf00)...)
	bomb = append(bomb, bytes.Repeat([]byte{0xbe}, 60_000)...)
	var r header.Request
	if _, err := d.Request(bomb, &r, &DefaultLimits); err != errTooLarge {
		t.Fatal(err)
	}
	if r.Bytes() > DefaultLimits.ListSize {
		t.Error(r.Bytes())
	}
}

func TestTableMemoryIsBounded(t *testing.T) {
	d := newDecoder()
	e := newEncoder()
	var r, back header.Request
	for i := range 20_000 {
		r.Reset()
		r.SetMethodID(header.MethodGet)
		r.SetPath([]byte("/"))
		r.SetAuthority(fmt.Appendf(nil, "host-%d", i))
		r.SetScheme([]byte("https"))
		r.SetString(header.UserAgent, "", strings.Repeat("u", i%500))
		if _, err := d.Request(e.AppendRequest(nil, &r), &back, &DefaultLimits); err != nil || showRequest(&back) != showRequest(&r) {
			t.Fatalf("%d: %v\ngot  %s\nwant %s", i, err, showRequest(&back), showRequest(&r))
		}
	}
	for _, table := range []*table{&d.table, &e.table} {
		if cap(table.buf) > 4*DefaultTableSize || len(table.entries) > 128 || table.size > DefaultTableSize {
			t.Errorf("%d bytes, %d entries, size %d", cap(table.buf), len(table.entries), table.size)
		}
	}
}

func TestEncoderTableSize(t *testing.T) {
	e := newEncoder()
	d := newDecoder()
	x := xhpack.NewDecoder(DefaultTableSize, nil)
	var r header.Response
	r.Status = 404
	r.AddString(header.Server, "", "retinue")
	r.AddString(header.ContentType, "", "text/plain")
	for i, size := range []int{-1, 0, -1, 100, 4096, 1 << 20, 50, -1, 3000, -1, -1} {
		if size >= 0 {
			e.SetTableSize(uint32(size))
			if i%2 == 0 {
				e.SetTableSize(10)
				e.SetTableSize(uint32(size))
			}
		}
		out := e.AppendResponse(nil, &r)
		var back header.Response
		if _, err := d.Response(out, &back, &DefaultLimits); err != nil || back.Status != 404 || show(&back.Block) != show(&r.Block) {
			t.Errorf("step %d, %x: %v %s", i, out, err, show(&back.Block))
		}
		if fields, err := x.DecodeFull(out); err != nil || len(fields) != 3 {
			t.Errorf("step %d, %x: x/net says %v %v", i, out, err, fields)
		}
	}
}

// TestEncoderKeepsSecrets looks at the wire: credentials are never indexed, repeated values shrink to an index.
func TestEncoderKeepsSecrets(t *testing.T) {
	e := newEncoder()
	var r header.Request
	r.SetMethodID(header.MethodGet)
	r.SetPath([]byte("/"))
	r.SetAuthority([]byte("a"))
	r.AddString(header.Cookie, "", "secret-cookie")
	r.AddString(header.Authorization, "", "secret")
	first := len(e.AppendRequest(nil, &r))
	x := xhpack.NewDecoder(DefaultTableSize, nil)
	fields, err := x.DecodeFull(newEncoder().AppendRequest(nil, &r))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		if want := f.Name == "cookie" || f.Name == "authorization"; f.Sensitive != want {
			t.Errorf("%v: sensitive %v", f, f.Sensitive)
		}
	}
	if e.table.count != 1 {
		t.Errorf("%d entries, want the authority's only", e.table.count)
	}
	if again := len(e.AppendRequest(nil, &r)); again >= first {
		t.Errorf("%d bytes, then %d", first, again)
	}
}

func TestEncoderLeavesConnectionFieldsOut(t *testing.T) {
	var r header.Response
	r.Status = 200
	for _, id := range []header.ID{header.Connection, header.KeepAlive, header.ProxyConnection, header.TransferEncoding, header.Upgrade, header.Host, header.TE} {
		r.AddString(id, "", "x")
	}
	if out := newEncoder().AppendResponse(nil, &r); !bytes.Equal(out, []byte{0x88}) {
		t.Errorf("%x", out)
	}
}

// FuzzDecode gives two sections in a row to our decoder and to x/net's.
func FuzzDecode(f *testing.F) {
	f.Add(section(with("x-a: b", "accept: c")...), section(with("x-a: b")...))
	for _, s := range []string{"828684418cf1e3c2e5f23a6ba0ab90f4ff", "203fe11f82be", "40036162630178be", "ff80808001", "0f0d0135"} {
		b, _ := hex.DecodeString(s)
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		x := xhpack.NewDecoder(DefaultTableSize, nil)
		x.SetAllowedMaxDynamicTableSize(DefaultTableSize)
		d := newDecoder()
		for _, in := range [][]byte{a, b} {
			fields, xerr := x.DecodeFull(in)
			var block header.Block
			limits := Limits{ListSize: 1 << 19, Fields: 4000}
			err := d.Trailers(in, &block, &limits)
			if err == errInteger || err == errTableSize || err == errTooLarge || err == errTooMany {
				return // x/net takes longer integers, and size updates where its table is empty
			}
			if compression := err != nil && err.Compression; compression != (xerr != nil) {
				t.Fatalf("%x: got %v, x/net says %v", in, err, xerr)
			}
			if xerr != nil {
				return
			}
			want, fault := "", false
			for _, field := range fields {
				n, v := []byte(field.Name), []byte(field.Value)
				id, _ := nameID(n)
				fault = fault || !header.ValidName(n) || strings.ToLower(field.Name) != field.Name || !validValue(v) ||
					connectionSpecific.Has(header.Lookup(n)) || id == header.TE
				want += fmt.Sprintf("%s=%q;", n, v)
			}
			if fault != (err != nil) {
				t.Fatalf("%x: got %v for %v", in, err, fields)
			}
			if got := show(&block); err == nil && got != want {
				t.Fatalf("%x: got %s, want %s", in, got, want)
			}
		}
	})
}

// FuzzEncode sends requests through our encoder to both decoders.
func FuzzEncode(f *testing.F) {
	f.Add("a.b", "/x", "server", "v", "x-custom", "w")
	f.Add("a", "/", "cookie", "a=b", "date", "now")
	f.Add("a", "*", "te", "trailers", "accept-encoding", "gzip, deflate")
	f.Fuzz(func(t *testing.T, authority, path, n1, v1, n2, v2 string) {
		e, d := newEncoder(), newDecoder()
		x := xhpack.NewDecoder(DefaultTableSize, nil)
		for i := range 3 {
			var r, back header.Request
			r.SetMethodID(header.MethodGet)
			r.SetScheme([]byte("http"))
			if !r.SetAuthority([]byte(authority)) || authority == "" || !r.SetPath([]byte(path)) || !strings.HasPrefix(path, "/") {
				return
			}
			r.AddString(header.Other, n1, v1)
			r.AddString(header.Other, n2, v2+strings.Repeat("x", i/2))
			out := e.AppendRequest(nil, &r)
			if fields, err := x.DecodeFull(out); err != nil || fields[0].Value != "GET" {
				t.Fatalf("%x: x/net says %v %v", out, err, fields)
			}
			_, err := d.Request(out, &back, &Limits{ListSize: 1 << 19, Fields: 100})
			if err == errLength || err == errTooLarge {
				return
			}
			r.RemoveAny(&notSent)
			if r.Has(header.TE) && err == nil && !back.Has(header.TE) {
				r.RemoveID(header.TE)
			}
			if r.Count(header.Cookie) > 1 {
				joinCookies(&r.Block)
			}
			if err != nil || showRequest(&back) != showRequest(&r) {
				t.Fatalf("%x: %v\ngot  %s\nwant %s", out, err, showRequest(&back), showRequest(&r))
			}
		}
	})
}
