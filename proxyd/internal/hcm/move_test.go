package hcm

import (
	"testing"
	"time"

	"retinue.dev/proxyd/internal/conn"
)

// clear is a transport whose handshake is any bytes and that then changes nothing.
type clear struct {
	conn  *conn.Conn
	ready bool
}

func (t *clear) Begin(c *conn.Conn) { t.conn = c }

func (t *clear) Open(wire, plain []byte) (int, []byte, conn.Progress) {
	if !t.ready {
		t.ready = true
		return len(wire), plain, conn.Ready
	}
	n := min(len(wire), cap(plain)-len(plain))
	return n, append(plain, wire[:n]...), conn.More
}

func (t *clear) Seal(b []byte)      { t.conn.Wire(b) }
func (t *clear) CloseNotify()       {}
func (t *clear) Closed(conn.Reason) {}
func (t *clear) Protocol() string   { return "" }

// TestHeldForAnother holds which connections stop while a filter hands over: those that are going to be packed, and no other one,
// which would wait for ever with the next request unread.
func TestHeldForAnother(t *testing.T) {
	const gotSecure = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https\r\n\r\n"
	for _, test := range []struct {
		name   string
		before func(x *world, c *peer)
		during func(x *world)
		held   bool
	}{
		{name: "plain", held: true},
		{name: "refused by the other", before: func(x *world, _ *peer) { x.filter.connections.refused = true }},
		{name: "with a transport", before: func(x *world, c *peer) {
			x.filter.connections.conn.Secure(&clear{}, 0)
			c.send("hello")
		}},
		{name: "that has reached its greatest age", during: func(x *world) { x.pass(2 * time.Second) }},
		{name: "of a filter that hands over no more", during: func(x *world) { x.filter.HandOver(nil) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := defaults()
			h.Timeouts.MaxConnectionDurationMs = 1_000
			x := newWorld(t, h)
			told := 0
			x.filter.HandOver(func() { told++ })
			c := x.client()
			if test.before != nil {
				test.before(x, c)
			}
			want := gotGet
			if x.filter.connections.conn.Transport() != nil {
				want = gotSecure
			}
			c.send(get)
			up := x.upstream()
			up.expect(want)
			up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
			if test.during != nil {
				test.during(x)
			}
			up.send("hi")
			c.expect(gotOK2)
			c.send(get)
			if test.held {
				up.nothing()
				if told != 1 || !x.filter.connections.movable() {
					t.Fatalf("more was called %d times, movable %t", told, x.filter.connections.movable())
				}
				x.filter.HandOver(nil)
			} else if told != 0 {
				t.Errorf("more was called %d times for a connection that cannot move", told)
			}
			up.expect(want)
		})
	}
}
