package extauthz

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/header"
)

func encoded(fields ...any) []byte {
	var b []byte
	for i := 0; i < len(fields); i += 2 {
		n := protowire.Number(fields[i].(int))
		switch v := fields[i+1].(type) {
		case int:
			b = message.Number(b, n, uint64(v))
		case string:
			b = message.Field(b, n, []byte(v))
		case []byte:
			b = message.Field(b, n, v)
		}
	}
	return b
}

func option(name, value string, more ...any) []byte {
	return encoded(append([]any{1, encoded(1, name, 2, value)}, more...)...)
}

func show(b *header.Block) string {
	var list []string
	for i := range b.Len() {
		list = append(list, string(b.NameAt(i))+"="+string(b.ValueAt(i)))
	}
	return strings.Join(list, " ")
}

// showEdits is fields, with "=" where they take the place of others, "+=" beside others, "?=" where there are none, "!=" for others.
func showEdits(e *edits) string {
	var list []string
	for i, what := range e.how {
		list = append(list, string(e.fields.NameAt(i))+[...]string{"=", "+=", "?=", "!="}[what]+string(e.fields.ValueAt(i)))
	}
	return strings.Join(list, " ")
}

// TestReadCheck has a row for each thing that a service may say. Whatever is not a clear permission is none.
func TestReadCheck(t *testing.T) {
	for _, test := range []struct {
		name    string
		message []byte
		want    string // "malformed", or what is decided
	}{
		{"nothing", nil, "403"},
		{"an empty status is OK", encoded(1, ""), "allowed"},
		{"a code", encoded(1, encoded(1, 7)), "403"},
		{"a permission with edits", encoded(1, encoded(1, 0), 3, encoded(2, option("x-user", "ann"), 2, option("x-more", "1", 2, encoded(1, 1)), 5, "x-secret", 6, option("x-seen", "1"))), "allowed request(x-user=ann x-more+=1) remove(x-secret=) reply(x-seen=1)"},
		{"edits without a status", encoded(3, encoded(2, option("x-user", "ann"))), "403"},
		{"a refusal", encoded(1, encoded(1, 16), 2, encoded(1, encoded(1, 401), 2, option("www-authenticate", "Basic"), 3, "who?")), "401 reply(www-authenticate=Basic) who?"},
		{"a refusal whose status is none", encoded(1, encoded(1, 7), 2, encoded(1, encoded(1, 99))), "403"},
		{"a refusal with status OK", encoded(1, encoded(1, 0), 2, encoded(1, encoded(1, 401))), "allowed"},
		{"what frames a message is not touched", encoded(1, "", 3, encoded(2, option("content-length", "0"), 2, option(":path", "/admin"), 2, option("Host", "x"), 5, "transfer-encoding")), "allowed remove(transfer-encoding=)"},
		{"raw values", encoded(1, "", 3, encoded(2, encoded(1, encoded(1, "x-a", 3, "raw")))), "allowed request(x-a=raw)"},
		{"a value with a line break", encoded(1, "", 3, encoded(2, option("x-a", "a\r\nx-b: c"))), "allowed"},
		{"append_action", encoded(1, "", 3, encoded(2, option("a", "1", 3, 0), 2, option("b", "2", 3, 1), 2, option("c", "3", 3, 2), 2, option("d", "4", 3, 3), 6, option("e", "5", 3, 1), 2, option("f", "6", 3, 4))), "allowed request(a=1 b?=2 c=3 d!=4 f=6) reply(e?=5)"},
		{"append counts more", encoded(1, "", 3, encoded(2, option("a", "1", 3, 1, 2, encoded(1, 1)), 2, option("b", "2", 2, "", 3, 3))), "allowed request(a+=1 b=2)"},
		{"a length of a header that is none", encoded(1, "", 3, encoded(2, option(strings.Repeat("a", 70_000), "1"), 2, option("b", "2"))), "allowed request(b=2)"},
		{"too many parameters", encoded(1, "", 3, bytes.Repeat(encoded(8, "x"), maxParameters+1)), "malformed"},
		{"cut off", encoded(1, "")[:1], "malformed"},
		{"cut off inside", []byte{0x0a, 0x02, 0x08, 0x80}, "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var d decision
			got := "malformed"
			if d.readCheck(test.message) {
				got = fmt.Sprint(d.status)
				if d.allowed {
					got = "allowed"
				}
				for _, part := range [][2]string{{"request", showEdits(&d.request)}, {"remove", show(&d.remove)}, {"reply", showEdits(&d.reply)}} {
					if part[1] != "" {
						got += " " + part[0] + "(" + part[1] + ")"
					}
				}
				if len(d.body) > 0 {
					got += " " + string(d.body)
				}
			}
			if got != test.want {
				t.Errorf("decided %q, not %q", got, test.want)
			}
		})
	}
}

func TestEdit(t *testing.T) {
	var r header.Request
	for _, f := range []string{"x-user", "x-secret", "host"} {
		r.AddString(header.Other, f, "client")
	}
	var d decision
	d.readCheck(encoded(1, "", 3, encoded(2, option("x-user", "ann"), 5, "X-Secret", 5, "host", 2, option("x-user", "bob", 2, encoded(1, 1)), 2, option("x-user", "eve", 3, 1), 2, option("x-new", "1", 3, 1), 2, option("x-none", "1", 3, 3))))
	var kept decision
	kept.copyFrom(&d)
	var paths [2][]byte
	kept.edit(&r, &paths)
	if got := show(&r.Block); got != "x-user=ann host=client x-user=bob x-new=1" {
		t.Error(got)
	}
	d.readCheck(encoded(1, "", 3, encoded(2, option("x-user", "eve", 3, 3))))
	if d.edit(&r, &paths); show(&r.Block) != "x-user=eve host=client x-new=1" {
		t.Error(show(&r.Block))
	}
	for _, row := range []struct {
		edits []byte
		want  string
	}{
		{encoded(7, encoded(1, "user", 2, "a&b"), 8, "token", 8, "none"), "/a?x=1&user=a%26b"},
		{encoded(7, encoded(1, "x", 2, "2"), 7, encoded(1, "y")), "/a?%74oken=t&x=2&y="},
		{encoded(7, encoded(2, "nobody's"), 8, "", 8, "x"), "/a?%74oken=t"},
		{encoded(8, "x", 8, "token"), "/a"},
		{encoded(7, encoded(1, "x", 2, strings.Repeat("%", maxPath/3))), "/a?%74oken=t&x=1"},
	} {
		r.SetPath([]byte("/a?%74oken=t&x=1"))
		d.readCheck(encoded(1, "", 3, row.edits))
		kept.copyFrom(&d)
		if kept.edit(&r, &paths); string(r.Path()) != row.want {
			t.Errorf("the path is %q, not %q", r.Path(), row.want)
		}
	}
}

// TestCache: a decision is found by its key until its time is over, and the least recently used goes for a new one.
func TestCache(t *testing.T) {
	c := cache{most: 3}
	keep := func(key string, until int64) {
		d := &decision{allowed: true, status: len(key)}
		c.keep([]byte(key), until, d)
	}
	found := func(key string, now int64) bool { return c.find([]byte(key), now) != nil }
	keep("a", 10)
	keep("b", 20)
	keep("c", 20)
	if !found("a", 9) || found("d", 9) {
		t.Error("what is kept is not what is found")
	}
	keep("d", 20) // b is the oldest by now
	if found("b", 9) || !found("a", 9) || !found("c", 9) || !found("d", 9) || len(c.entries) != 3 {
		t.Errorf("%d entries", len(c.entries))
	}
	if found("a", 10) || len(c.entries) != 2 {
		t.Error("a decision outlives its time")
	}
	keep("c", 30)
	if len(c.entries) != 2 || !found("c", 29) {
		t.Error("a decision is not renewed")
	}
	for i := range 100 {
		keep(fmt.Sprint(i), 100)
		n := 0
		for e := c.newest; e != nil; e = e.older {
			n++
		}
		if n != len(c.entries) || n > 3 {
			t.Fatalf("%d in the list, %d in the map", n, len(c.entries))
		}
	}
}

// FuzzReadCheck: whatever a service sends, a request passes only by a status that is 0, and nothing that frames it is edited.
func FuzzReadCheck(f *testing.F) {
	f.Add(encoded(1, encoded(1, 0), 3, encoded(2, option("x-user", "ann"), 5, "x-secret")))
	f.Add(encoded(1, encoded(1, 16), 2, encoded(1, encoded(1, 401), 2, option("a", "b"), 3, "who?")))
	f.Add(encoded(1, "", 3, encoded(7, encoded(1, "user", 2, "a b"), 8, "b")))
	var d decision
	var paths [2][]byte
	f.Fuzz(func(t *testing.T, b []byte) {
		ok := d.readCheck(b)
		if ok && !d.allowed && (d.status < 200 || d.status > 599) {
			t.Errorf("a refusal with status %d", d.status)
		}
		var r header.Request
		r.AddString(header.ContentLength, "", "5")
		r.SetPath([]byte("/a?b=c"))
		d.edit(&r, &paths)
		if p := r.Path(); len(p) > maxPath || p[0] != '/' || bytes.ContainsAny(p, " \r\n#") || bytes.IndexByte(p, 0) >= 0 {
			t.Errorf("the path is %q", p)
		}
		if string(r.Get(header.ContentLength)) != "5" {
			t.Error("the length of a body was edited")
		}
	})
}

// TestNote: what a certificate tells of its owner.
func TestNote(t *testing.T) {
	uri, err := url.Parse("spiffe://example.com/app")
	if err != nil {
		t.Fatal(err)
	}
	named := &x509.Certificate{Raw: []byte("x"), URIs: []*url.URL{uri}, DNSNames: []string{"app"}}
	dns := &x509.Certificate{DNSNames: []string{"app", "more"}}
	subject := &x509.Certificate{Subject: pkix.Name{CommonName: "app"}}
	client := func(c *x509.Certificate) *tls.ConnectionState {
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
	}
	const pem = "-----BEGIN%20CERTIFICATE-----%0AeA%3D%3D%0A-----END%20CERTIFICATE-----%0A"
	for _, row := range []struct {
		state        *tls.ConnectionState
		own          *x509.Certificate
		certificate  bool
		theirs, ours []byte
	}{
		{&tls.ConnectionState{}, nil, true, nil, nil},
		{&tls.ConnectionState{}, subject, true, nil, encoded(4, "CN=app")},
		{client(named), dns, false, encoded(4, "spiffe://example.com/app"), encoded(4, "app")},
		{client(named), nil, true, encoded(4, "spiffe://example.com/app", 5, pem), nil},
		{client(dns), named, false, encoded(4, "app"), encoded(4, "spiffe://example.com/app")},
	} {
		f := &Filter{certificate: row.certificate}
		note := f.Note(row.state, row.own)
		at := 4 + binary.BigEndian.Uint32(note)
		if !bytes.Equal(note[4:at], row.theirs) || !bytes.Equal(note[at:], row.ours) {
			t.Errorf("theirs %q, ours %q", note[4:at], note[at:])
		}
	}
}
