package ratelimit

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

func TestBucket(t *testing.T) {
	r := rate{token: int64(100 * time.Millisecond), burst: int64(300 * time.Millisecond)} // 10/s, 3 at once
	var b atomic.Int64
	now := int64(time.Hour)
	for i, want := range []int64{2, 1, 0} {
		if ok, left, _, reset := r.take(&b, now); !ok || left != want || reset != int64(i+1)*r.token {
			t.Fatalf("token %d: %v, %d left, full in %d", i, ok, left, reset)
		}
	}
	if ok, _, wait, reset := r.take(&b, now+r.token/2); ok || wait != r.token/2 || reset != r.burst-r.token/2 {
		t.Fatalf("an empty bucket: %v, wait %d, full in %d", ok, wait, reset)
	}
	if ok, _, _, _ := r.take(&b, now+r.token); !ok {
		t.Fatal("no token after the time of one")
	}
	if ok, left, _, _ := r.take(&b, now+int64(time.Hour)); !ok || left != 2 {
		t.Fatalf("after an hour: %v, %d left: a bucket holds no more than its burst", ok, left)
	}
}

// Workers that take at once never get more than there is.
func TestBucketShared(t *testing.T) {
	r := rate{token: int64(time.Second), burst: int64(500 * time.Second)}
	var b atomic.Int64
	var got atomic.Int64
	var done sync.WaitGroup
	for range 8 {
		done.Add(1)
		go func() {
			defer done.Done()
			for range 200 {
				if ok, _, _, _ := r.take(&b, int64(time.Hour)); ok {
					got.Add(1)
				}
			}
		}()
	}
	done.Wait()
	if got.Load() != 500 {
		t.Errorf("%d tokens of 500", got.Load())
	}
}

func TestTableForgetsTheFullest(t *testing.T) {
	table := newTable(ways) // one set
	r := rate{token: int64(time.Second), burst: int64(10 * time.Second)}
	now := int64(time.Hour)
	for i := range ways { // key i has taken i+1 tokens
		b, evicted := table.find([]byte{byte(i)}, now)
		if evicted {
			t.Fatalf("key %d evicted another", i)
		}
		for range i + 1 {
			r.take(b, now)
		}
	}
	if _, evicted := table.find([]byte("new"), now); !evicted {
		t.Error("a bucket that was not full is gone, and nobody knows")
	}
	for i := 1; i < ways; i++ {
		b, _ := table.find([]byte{byte(i)}, now)
		if spent := b.Load() - now; spent != int64(i+1)*r.token {
			t.Errorf("key %d has spent %v", i, time.Duration(spent))
		}
	}
	if _, evicted := table.find([]byte("later"), now+int64(time.Minute)); evicted {
		t.Error("full buckets are nothing to lose")
	}
}

func TestTableShared(t *testing.T) {
	table := newTable(1024)
	var done sync.WaitGroup
	for w := range 4 {
		done.Add(1)
		go func() {
			defer done.Done()
			for i := range 5000 {
				if b, _ := table.find(fmt.Appendf(nil, "%d", (i*(w+1))%3000), int64(i)); b == nil {
					t.Error("no bucket")
				}
			}
		}()
	}
	done.Wait()
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]*configv1.RateLimitFilter{
		"nothing":       {},
		"no interval":   {Tokens: 1},
		"too fast":      {Tokens: 1_000_001, IntervalMs: 1000},
		"a year":        {Tokens: 1, IntervalMs: 86_400_000, Burst: 367},
		"a status":      {Tokens: 1, IntervalMs: 1, Status: 200},
		"a key":         {Tokens: 1, IntervalMs: 1, Key: []string{"cookie:x"}},
		"a header name": {Tokens: 1, IntervalMs: 1, Key: []string{"header:a b"}},
	} {
		if _, err := New(o, 1, []*counters.RateLimit{{}}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestKeys(t *testing.T) {
	key := func(parts []string, set func(*stream.Stream)) (string, bool) {
		f, err := New(&configv1.RateLimitFilter{Tokens: 1, IntervalMs: 1, Key: parts}, 1, []*counters.RateLimit{{}})
		if err != nil {
			t.Fatal(err)
		}
		var s stream.Stream
		set(&s)
		k, ok := f.append(nil, &s)
		return string(k), ok
	}
	from := func(a string) func(*stream.Stream) {
		return func(s *stream.Stream) { s.Client = netip.MustParseAddr(a) }
	}
	named := func(host, route string) func(*stream.Stream) {
		return func(s *stream.Stream) { s.HostName, s.RouteName = host, route }
	}
	with := func(value string) func(*stream.Stream) {
		return func(s *stream.Stream) { s.Request.AddString(header.Other, "x-key", value) }
	}
	for _, row := range []struct {
		parts []string
		a, b  func(*stream.Stream)
		same  bool
	}{
		{[]string{"source"}, from("192.0.2.1"), from("192.0.2.2"), false},
		{[]string{"source"}, from("192.0.2.1"), from("::ffff:192.0.2.1"), true},
		{[]string{"source"}, from("2001:db8::1"), from("2001:db8::ffff:1"), true},
		{[]string{"source"}, from("2001:db8::1"), from("2001:db8:0:1::1"), false},
		{[]string{"route"}, named("a", "bc"), named("ab", "c"), false},
		{[]string{"virtual_host"}, named("a", "b"), named("a", "c"), true},
		{[]string{"header:x-key", "header:x-key"}, with("a"), with("b"), false},
		{[]string{"connection"}, func(s *stream.Stream) { s.ConnectionID = 1 }, func(s *stream.Stream) { s.ConnectionID = 2 }, false},
	} {
		a, okA := key(row.parts, row.a)
		b, okB := key(row.parts, row.b)
		if !okA || !okB || (a == b) != row.same {
			t.Errorf("%v: %q and %q", row.parts, a, b)
		}
	}
	if _, ok := key([]string{"header:x-key"}, func(*stream.Stream) {}); ok {
		t.Error("a request without the header has a key")
	}
}
