package extauthz

import (
	"fmt"
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
		{"a permission with edits", encoded(1, encoded(1, 0), 3, encoded(2, option("x-user", "ann"), 2, option("x-more", "1", 2, encoded(1, 1)), 5, "x-secret", 6, option("x-seen", "1"))), "allowed set(x-user=ann) add(x-more=1) remove(x-secret=) reply(x-seen=1)"},
		{"edits without a status", encoded(3, encoded(2, option("x-user", "ann"))), "403"},
		{"a refusal", encoded(1, encoded(1, 16), 2, encoded(1, encoded(1, 401), 2, option("www-authenticate", "Basic"), 3, "who?")), "401 reply(www-authenticate=Basic) who?"},
		{"a refusal whose status is none", encoded(1, encoded(1, 7), 2, encoded(1, encoded(1, 99))), "403"},
		{"a refusal with status OK", encoded(1, encoded(1, 0), 2, encoded(1, encoded(1, 401))), "allowed"},
		{"what frames a message is not touched", encoded(1, "", 3, encoded(2, option("content-length", "0"), 2, option(":path", "/admin"), 2, option("Host", "x"), 5, "transfer-encoding")), "allowed remove(transfer-encoding=)"},
		{"raw values", encoded(1, "", 3, encoded(2, encoded(1, encoded(1, "x-a", 3, "raw")))), "allowed set(x-a=raw)"},
		{"a value with a line break", encoded(1, "", 3, encoded(2, option("x-a", "a\r\nx-b: c"))), "allowed"},
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
				for _, part := range []struct {
					name string
					b    *header.Block
				}{{"set", &d.set}, {"add", &d.add}, {"remove", &d.remove}, {"reply", &d.reply}} {
					if part.b.Len() > 0 {
						got += " " + part.name + "(" + show(part.b) + ")"
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
	var r header.Block
	for _, f := range []string{"x-user", "x-secret", "host"} {
		r.AddString(header.Other, f, "client")
	}
	var d decision
	d.readCheck(encoded(1, "", 3, encoded(2, option("x-user", "ann"), 5, "x-secret", 5, "host")))
	d.edit(&r)
	if got := show(&r); got != "x-user=ann host=client" {
		t.Error(got)
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
	var d decision
	f.Fuzz(func(t *testing.T, b []byte) {
		ok := d.readCheck(b)
		if ok && !d.allowed && (d.status < 200 || d.status > 599) {
			t.Errorf("a refusal with status %d", d.status)
		}
		var r header.Block
		r.AddString(header.ContentLength, "", "5")
		d.edit(&r)
		if string(r.Get(header.ContentLength)) != "5" {
			t.Error("the length of a body was edited")
		}
	})
}
