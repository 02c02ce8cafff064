package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	configv1 "retinue.dev/services/api/config/v1"
)

func aaaa(last byte) *dnsmessage.AAAAResource {
	return &dnsmessage.AAAAResource{AAAA: [16]byte{0xfd, 15: last}}
}

// spelled writes endpoints as NAME*WEIGHT=ADDRESS,ADDRESS….
func spelled(list []*configv1.Endpoint) string {
	words := make([]string, 0, len(list))
	for _, e := range list {
		words = append(words, fmt.Sprintf("%s*%d=%s", e.GetName(), e.GetWeight(), strings.Join(append([]string{e.GetAddress()}, e.GetAdditionalAddresses()...), ",")))
	}
	return strings.Join(words, " ")
}

func TestLookupLogical(t *testing.T) {
	s := newServer(t)
	// 2 before 1: what the name server puts first is tried first.
	s.set("api.internal", 30, a(2), a(1), a(3), a(2), aaaa(9), aaaa(1))
	s.set("four.internal", 20, a(4))
	s.set("_http._tcp.internal", 60,
		srv(1, 5, 8080, "API.internal"), srv(1, 2, 8080, "api.internal"), srv(1, 0, 8081, "api.internal"), srv(1, 1, 80, "four.internal"),
		srv(1, 1, 0, "four.internal"), srv(1, 1, 1, ""), srv(2, 1, 9, "gone.internal"))
	s.set("_none._tcp.internal", 60, srv(0, 0, 0, ""))
	everywhere := func(netip.Addr) bool { return true }
	for _, c := range []struct {
		host, record string
		routed       func(netip.Addr) bool
		want, err    string
	}{
		{"api.internal", "any", everywhere, "api.internal:80*1=[fd00::9]:80,10.0.0.2:80,[fd00::1]:80,10.0.0.1:80,10.0.0.3:80", ""},
		{"api.internal", "any", netip.Addr.Is4, "api.internal:80*1=10.0.0.2:80,10.0.0.1:80,10.0.0.3:80", ""},
		{"api.internal", "any", netip.Addr.Is6, "api.internal:80*1=[fd00::9]:80,[fd00::1]:80", ""},
		{"api.internal", "a", everywhere, "api.internal:80*1=10.0.0.2:80,10.0.0.1:80,10.0.0.3:80", ""},
		{"api.internal", "aaaa", everywhere, "api.internal:80*1=[fd00::9]:80,[fd00::1]:80", ""},
		{"four.internal", "any", everywhere, "four.internal:80*1=10.0.0.4:80", ""},
		{"four.internal", "aaaa", everywhere, "", "no such records"},
		{"10.9.8.7", "any", everywhere, "10.9.8.7:80*1=10.9.8.7:80", ""},
		{
			"_http._tcp.internal", "srv", netip.Addr.Is4,
			"api.internal:8080*7=10.0.0.2:8080,10.0.0.1:8080,10.0.0.3:8080 api.internal:8081*1=10.0.0.2:8081,10.0.0.1:8081,10.0.0.3:8081 four.internal:80*1=10.0.0.4:80", "",
		},
		{"_none._tcp.internal", "srv", everywhere, "", "no such records"},
	} {
		r := &resolver{routed: c.routed}
		got, _, err := r.lookup(t.Context(), &configv1.DnsDiscovery{Host: c.host, Port: 80, Record: c.record, Resolvers: []string{s.address}, Logical: true})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s %s: %v, want %q", c.host, c.record, err, c.err)
			}
			continue
		}
		if text := spelled(normal(got)); err != nil || text != c.want {
			t.Errorf("%s %s: %s, %v; want %s", c.host, c.record, text, err, c.want)
		}
	}
}

// lines are the messages that a table logs, with their level.
type lines struct {
	mu   sync.Mutex
	list []string
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lines) WithGroup(string) slog.Handler            { return l }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, r.Level.String()+" "+r.Message)
	return nil
}

func (l *lines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

// TestOrderIsTold has addresses of one name that change place, and those of many of which not all are told: both are told and are no
// change that people read of.
func TestOrderIsTold(t *testing.T) {
	const another, changed = "DEBUG addresses have another order", "INFO endpoints changed"
	addresses := func(last ...byte) (list []netip.Addr) {
		for _, b := range last {
			list = append(list, netip.AddrFrom4([4]byte{10, 0, 0, b}))
		}
		return list
	}
	turned := func(n, first int) (list []byte) {
		for i := range n {
			list = append(list, byte(1+(first+i)%n))
		}
		return list
	}
	heard := &lines{}
	table := New(slog.New(heard))
	steps, looked := make(chan look), make(chan struct{})
	table.look = func(ctx context.Context, _ *configv1.Discovery, _ *look) (got look) {
		select {
		case looked <- struct{}{}: // the one before is taken
		case <-ctx.Done():
		}
		select {
		case got = <-steps:
		case <-ctx.Done():
		}
		return got
	}
	spec := &configv1.Discovery{Kind: &configv1.Discovery_Dns{Dns: &configv1.DnsDiscovery{Logical: true}}}
	table.Set(map[string]*configv1.Discovery{"api": spec})
	t.Cleanup(func() { table.Set(nil) })
	<-looked
	version, rebuilt := uint64(0), uint64(0)
	for _, c := range []struct {
		name   string
		last   []byte
		failed bool
		told   int // addresses that are told; 0: nothing is
		logged string
	}{
		{"the first", []byte{1, 2}, false, 2, changed},
		{"the same", []byte{1, 2}, false, 0, ""},
		{"turned", []byte{2, 1}, false, 2, another},
		{"one more", []byte{2, 1, 3}, false, 3, changed},
		{"no answer", nil, true, 0, "WARN endpoints are not found; those found last stay"},
		{"the same after a failure", []byte{2, 1, 3}, false, 0, "INFO endpoints are found again"},
		{"another one", []byte{2, 1, 4}, false, 3, changed},
		{"more than are told", turned(20, 0), false, maxAddresses, changed},
		{"those, turned", turned(20, 5), false, maxAddresses, another},
		{"one that is not told", append(turned(20, 5), 99), false, 0, ""},
		{"that one in front", append([]byte{99}, turned(20, 5)...), false, maxAddresses, another},
	} {
		got := look{endpoints: []*configv1.Endpoint{logical("api.internal", addresses(c.last...), 80, 1)}}
		if c.failed {
			got = look{err: errors.New("no answer")}
		}
		steps <- got
		<-looked
		list, now, _ := table.Since(version)
		switch {
		case c.told == 0:
			if len(list) != 0 || now != version {
				t.Errorf("%s: told %v", c.name, list)
			}
		case len(list) != 1 || now != version+1 || len(list[0].GetEndpoints()) != 1:
			t.Errorf("%s: told %v", c.name, list)
		default:
			want := "api.internal:80*1="
			for i, a := range addresses(c.last[:c.told]...) {
				want += map[bool]string{true: ","}[i > 0] + netip.AddrPortFrom(a, 80).String()
			}
			if text := spelled(list[0].GetEndpoints()); text != want {
				t.Errorf("%s: told %s, want %s", c.name, text, want)
			}
		}
		version = now
		if logged := strings.Join(heard.take(), "; "); logged != c.logged {
			t.Errorf("%s: logged %q, want %q", c.name, logged, c.logged)
		}
		if n := table.Status()[0].GetNoRebuilds(); (n > rebuilt) != (c.told == 0 && !c.failed) {
			t.Errorf("%s: %d looks changed nothing, %d before", c.name, n, rebuilt)
		} else {
			rebuilt = n
		}
	}
}

func TestInterleave(t *testing.T) {
	four := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, last}) }
	six := func(last byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 15: last}) }
	for _, c := range []struct{ all, want []netip.Addr }{
		{nil, []netip.Addr{}},
		{[]netip.Addr{four(1), six(1)}, []netip.Addr{six(1), four(1)}},
		{[]netip.Addr{four(2), four(1), four(3), six(1)}, []netip.Addr{six(1), four(2), four(1), four(3)}},
		{[]netip.Addr{six(3), six(1), four(1), six(2)}, []netip.Addr{six(3), four(1), six(1), six(2)}},
		{[]netip.Addr{four(1), four(2), four(1)}, []netip.Addr{four(1), four(2)}},
	} {
		if got := interleave(c.all); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.all, got, c.want)
		}
	}
}
