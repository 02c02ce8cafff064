package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"
)

// samePort listens on one port by both protocols. Another program may have the TCP port of a UDP port that was free.
func samePort(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	var err error
	for range 20 {
		var udp net.PacketConn
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		var tcp net.Listener
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			return udp, tcp
		}
		_ = udp.Close()
	}
	t.Fatalf("no port is free for both protocols: %v", err)
	return nil, nil
}

// server is a name server for one test: UDP and TCP on one port of the loopback.
type server struct {
	address string
	mu      sync.Mutex
	zone    map[string][]dnsmessage.Resource // by "name. TYPE"
	code    dnsmessage.RCode
	asked   int
	large   bool // by UDP only the beginning fits
}

func newServer(t *testing.T) *server {
	t.Helper()
	udp, tcp := samePort(t)
	s := &server{address: udp.LocalAddr().String(), zone: map[string][]dnsmessage.Resource{}}
	t.Cleanup(func() { _ = udp.Close(); _ = tcp.Close() })
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buffer)
			if err != nil {
				return
			}
			reply := s.reply(buffer[:n], true)
			_, _ = udp.WriteTo([]byte("nonsense that is for nobody"), from)
			_, _ = udp.WriteTo(reply, from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			buffer := make([]byte, 4096)
			n, _ := c.Read(buffer)
			if n > 2 {
				reply := s.reply(buffer[2:n], false)
				_, _ = c.Write(append([]byte{byte(len(reply) >> 8), byte(len(reply))}, reply...))
			}
			_ = c.Close()
		}
	}()
	return s
}

func (s *server) reply(question []byte, udp bool) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil
	}
	q := m.Questions[0]
	answers, known := s.zone[q.Name.String()+" "+strings.TrimPrefix(q.Type.String(), "Type")]
	m.Response, m.RCode, m.Additionals = true, s.code, nil
	for key := range s.zone {
		known = known || strings.HasPrefix(key, q.Name.String()+" ")
	}
	switch {
	case s.code != dnsmessage.RCodeSuccess:
	case !known:
		m.RCode = dnsmessage.RCodeNameError
	case udp && s.large:
		m.Truncated = true
	default:
		m.Answers = answers
	}
	out, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return out
}

func (s *server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *server) set(name string, ttl uint32, bodies ...dnsmessage.ResourceBody) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.zone {
		if strings.HasPrefix(key, name+". ") {
			delete(s.zone, key)
		}
	}
	for _, b := range bodies {
		kind := ""
		h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name + "."), Class: dnsmessage.ClassINET, TTL: ttl}
		switch b.(type) {
		case *dnsmessage.AResource:
			kind = "A"
		case *dnsmessage.AAAAResource:
			kind = "AAAA"
		case *dnsmessage.SRVResource:
			kind = "SRV"
		}
		key := name + ". " + kind
		s.zone[key] = append(s.zone[key], dnsmessage.Resource{Header: h, Body: b})
	}
}

func a(last byte) *dnsmessage.AResource { return &dnsmessage.AResource{A: [4]byte{10, 0, 0, last}} }

func srv(priority, weight, port uint16, target string) *dnsmessage.SRVResource {
	return &dnsmessage.SRVResource{Priority: priority, Weight: weight, Port: port, Target: dnsmessage.MustNewName(target + ".")}
}

func texts(list []*configv1.Endpoint) (out []string) {
	for _, e := range list {
		out = append(out, fmt.Sprintf("%s*%d", e.GetAddress(), e.GetWeight()))
	}
	slices.Sort(out)
	return out
}

func TestLookup(t *testing.T) {
	s := newServer(t)
	s.set("api.internal", 30, a(1), a(2), &dnsmessage.AAAAResource{AAAA: [16]byte{0xfd, 15: 1}})
	s.set("one.internal", 7, a(3))
	s.set("_http._tcp.api.internal", 60, srv(1, 5, 8080, "api.internal"), srv(1, 0, 8081, "one.internal"), srv(2, 1, 9, "gone.internal"))
	s.set("only6.internal", 7, &dnsmessage.AAAAResource{AAAA: [16]byte{0xfd, 15: 2}})
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.9 local Local2 # remark\n::1 local\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search internal\nnameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &resolver{resolvConf: conf, hosts: hosts, routed: func(netip.Addr) bool { return true }}
	for _, c := range []struct {
		host, record string
		resolvers    []string
		want         string
		ttl          time.Duration
		err          string
	}{
		{"api.internal", "any", []string{s.address}, "10.0.0.1:80*1 10.0.0.2:80*1 [fd00::1]:80*1", 30 * time.Second, ""},
		{"API.internal", "a", []string{s.address}, "10.0.0.1:80*1 10.0.0.2:80*1", 30 * time.Second, ""},
		{"api.internal", "aaaa", []string{s.address}, "[fd00::1]:80*1", 30 * time.Second, ""},
		{"only6.internal", "any", []string{s.address}, "[fd00::2]:80*1", 7 * time.Second, ""},
		{"_http._tcp.api.internal", "srv", []string{s.address}, "10.0.0.1:8080*5 10.0.0.2:8080*5 10.0.0.3:8081*1 [fd00::1]:8080*5", 7 * time.Second, ""},
		{"none.internal", "any", []string{s.address}, "", 0, "no such records"},
		{"one.internal", "aaaa", []string{s.address}, "", 0, "no such records"},
		{"one.internal", "a", []string{"127.0.0.1:1", s.address}, "10.0.0.3:80*1", 7 * time.Second, ""},
		{"10.9.8.7", "any", nil, "10.9.8.7:80*1", time.Hour, ""},
		{"local2", "any", nil, "127.0.0.9:80*1", 0, ""},
		{"local", "aaaa", nil, "[::1]:80*1", 0, ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		got, ttl, err := r.lookup(ctx, &configv1.DnsDiscovery{Host: strings.ToLower(c.host), Port: 80, Record: c.record, Resolvers: c.resolvers})
		cancel()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s %s: %v, want %q", c.host, c.record, err, c.err)
			}
			continue
		}
		if err != nil || strings.Join(texts(got), " ") != c.want || ttl != c.ttl {
			t.Errorf("%s %s: %v for %v, %v; want %s for %v", c.host, c.record, texts(got), ttl, err, c.want, c.ttl)
		}
	}
}

// TestUsable: a family without a way out of the machine is left out where the other one has one, and only there.
func TestUsable(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		name      string
		all, want []netip.Addr
		routed    []netip.Addr
	}{
		{"both have one", []netip.Addr{four, six}, []netip.Addr{four, six}, []netip.Addr{four, six}},
		{"no IPv6", []netip.Addr{four, six}, []netip.Addr{four}, []netip.Addr{four}},
		{"no IPv4", []netip.Addr{four, six}, []netip.Addr{six}, []netip.Addr{six}},
		{"neither has one", []netip.Addr{four, six}, []netip.Addr{four, six}, nil},
		{"there is no other", []netip.Addr{six}, []netip.Addr{six}, nil},
	} {
		r := &resolver{routed: func(a netip.Addr) bool { return slices.Contains(c.routed, a) }}
		if got := r.usable(c.all); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if !hasRoute(netip.MustParseAddr("127.0.0.1")) {
		t.Error("the loopback address has no route")
	}
}

func TestTruncatedReplyGoesByTCP(t *testing.T) {
	s := newServer(t)
	s.set("api.internal", 30, a(1))
	s.change(func() { s.large = true })
	got, err := askOne(t.Context(), s.address, dnsmessage.MustNewName("api.internal."), dnsmessage.TypeA)
	if err != nil || len(got.addresses) != 1 {
		t.Errorf("%v %v", got, err)
	}
}

func TestServerTroubleIsAnError(t *testing.T) {
	s := newServer(t)
	s.change(func() { s.code = dnsmessage.RCodeServerFailure })
	_, err := askAll(t.Context(), []string{s.address}, "api.internal", dnsmessage.TypeA)
	if err == nil || errors.Is(err, errNothing) {
		t.Errorf("got %v", err)
	}
}

// TestFloorAndCeiling holds how long an answer counts.
func TestFloorAndCeiling(t *testing.T) {
	s := newServer(t)
	r := &resolver{}
	spec := &configv1.Discovery{Kind: &configv1.Discovery_Dns{Dns: &configv1.DnsDiscovery{
		Host: "api.internal", Port: 80, Record: "a", Resolvers: []string{s.address}, MinTtlMs: 5_000, MaxTtlMs: 60_000, TimeoutMs: 5_000,
	}}}
	for ttl, want := range map[uint32]time.Duration{0: 5 * time.Second, 30: 30 * time.Second, 3600: time.Minute} {
		s.set("api.internal", ttl, a(1))
		if got := r.look(t.Context(), spec, nil); got.err != nil || got.again != want {
			t.Errorf("TTL %d: again in %v, %v; want %v", ttl, got.again, got.err, want)
		}
	}
	s.change(func() { s.code = dnsmessage.RCodeRefused })
	if got := r.look(t.Context(), spec, nil); got.err == nil || got.again != 5*time.Second || got.failures != 1 {
		t.Errorf("after a failure: again in %v, %v", got.again, got.err)
	}
	if got := r.look(t.Context(), spec, &look{failures: 3}); got.err == nil || got.failures != 4 {
		t.Errorf("the fourth failure: %+v", got)
	}
	s.change(func() { s.code = dnsmessage.RCodeSuccess })
	if got := r.look(t.Context(), spec, &look{failures: 3}); got.err != nil || got.failures != 0 {
		t.Errorf("found again: %+v", got)
	}
}

// quiet is a table whose looks a test makes.
func quiet(t *testing.T, f func(*configv1.Discovery) look) *Table {
	table := New(slog.New(slog.DiscardHandler))
	table.look = func(_ context.Context, d *configv1.Discovery, _ *look) look { return f(d) }
	t.Cleanup(func() { table.Set(nil) })
	return table
}

func file(path string) *configv1.Discovery {
	return &configv1.Discovery{Kind: &configv1.Discovery_File{File: &configv1.FileDiscovery{Path: path}}}
}

// TestLastGoodStays has look-ups that fail after one that did not.
func TestLastGoodStays(t *testing.T) {
	steps := make(chan look)
	table := quiet(t, func(*configv1.Discovery) look { return <-steps })
	table.Set(map[string]*configv1.Discovery{"api": file("x")})
	now := time.Millisecond
	steps <- look{endpoints: []*configv1.Endpoint{{Address: "b:1", Weight: 1}, {Address: "a:1", Weight: 1}, {Address: "a:1", Weight: 2}}, again: now}
	table.Settle(t.Context())
	list, version, next := table.Since(0)
	if len(list) != 1 || version != 1 || strings.Join(texts(list[0].GetEndpoints()), " ") != "a:1*3 b:1*1" {
		t.Fatalf("%v at %d", list, version)
	}
	steps <- look{err: errors.New("no answer"), again: now}
	steps <- look{endpoints: []*configv1.Endpoint{{Address: "a:1", Weight: 3}, {Address: "b:1", Weight: 1}}, again: now} // the same, in another order
	steps <- look{err: errors.New("no answer"), again: now}
	steps <- look{err: errors.New("no answer"), again: now} // the one before is taken by now
	select {
	case <-next:
		t.Error("a change was told without one")
	default:
	}
	if s := table.Status(); len(s) != 1 || s[0].GetFailure() != "no answer" || s[0].GetEndpoints() != 2 || s[0].GetFailingSinceUnixMs() == 0 {
		t.Errorf("status %v", s)
	}
	if list, _, _ := table.Since(version); len(list) != 0 {
		t.Errorf("changes %v", list)
	}
	steps <- look{endpoints: []*configv1.Endpoint{{Address: "c:1", Weight: 1}}, again: time.Hour}
	<-next
	if list, version, _ := table.Since(version); len(list) != 1 || version != 2 || texts(list[0].GetEndpoints())[0] != "c:1*1" {
		t.Errorf("%v at %d", list, version)
	}
}

// TestLooksAreCounted by how they ended; what is looked for may change meanwhile.
func TestLooksAreCounted(t *testing.T) {
	steps := make(chan look)
	table := quiet(t, func(*configv1.Discovery) look { return <-steps })
	clock := time.UnixMilli(1_000)
	table.now = func() time.Time { return clock }
	found := func(address string) look { return look{endpoints: []*configv1.Endpoint{{Address: address, Weight: 1}}} }
	nothing := look{err: fmt.Errorf("target x: %w", errNothing)}
	table.Set(map[string]*configv1.Discovery{"api": file("x")})
	for _, l := range []look{{err: errors.New("no answer")}, nothing, found("a:1"), found("a:1"), found("b:1"), {}, {err: errors.New("no answer"), again: time.Hour}} {
		steps <- l
	}
	told := func(want *configv1.DiscoveryStatus) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			got := table.Status()
			if len(got) == 1 && proto.Equal(got[0], want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("told %v, want %v", got, want)
			}
		}
	}
	want := &configv1.DiscoveryStatus{
		Cluster: "api", Endpoints: 1, Failure: "no answer", FailingSinceUnixMs: 1_000,
		Successes: 3, Failures: 2, Empties: 1, NoRebuilds: 1, LastSuccessUnixMs: 1_000,
	}
	told(want)
	table.Set(map[string]*configv1.Discovery{"api": file("y")})
	last := found("c:1")
	last.again = time.Hour
	steps <- last
	want.Failure, want.FailingSinceUnixMs, want.Successes = "", 0, 4
	told(want)
}

// TestSetKeepsWhatStays changes one of two discoveries.
func TestSetKeepsWhatStays(t *testing.T) {
	var mu sync.Mutex
	looks := map[string]int{}
	table := quiet(t, func(d *configv1.Discovery) look {
		mu.Lock()
		defer mu.Unlock()
		looks[d.GetFile().GetPath()]++
		return look{endpoints: []*configv1.Endpoint{{Address: d.GetFile().GetPath(), Weight: 1}}, again: time.Hour}
	})
	table.Set(map[string]*configv1.Discovery{"a": file("a1"), "b": file("b1")})
	table.Settle(t.Context())
	table.Add(map[string]*configv1.Discovery{"b": file("b2"), "c": file("c1")})
	table.Settle(t.Context())
	table.Set(map[string]*configv1.Discovery{"a": file("a1"), "b": file("b2"), "c": file("c1")})
	table.Settle(t.Context())
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(looks) != "map[a1:1 b1:1 b2:1 c1:1]" {
		t.Errorf("looks: %v", looks)
	}
	var names []string
	list, _, _ := table.Since(0)
	for _, c := range list {
		names = append(names, c.GetCluster()+"="+c.GetEndpoints()[0].GetAddress())
	}
	if got := strings.Join(names, " "); got != "a=a1 b=b2 c=c1" {
		t.Errorf("endpoints: %s", got)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints")
	var last look
	step := func() look {
		got := readFile(path, &last)
		last = got
		return got
	}
	if got := step(); got.err == nil {
		t.Error("a file that is not there was read")
	}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put("# servers\n10.0.0.1:80\n\nunix:/run/a.sock 5 # heavy\n[::ffff:10.0.0.2]:81\n")
	if got := step(); got.err != nil || strings.Join(texts(got.endpoints), " ") != "10.0.0.1:80*1 10.0.0.2:81*1 unix:/run/a.sock*5" {
		t.Errorf("%v %v", texts(got.endpoints), got.err)
	}
	put("10.0.0.1:80 7 priority=2 version=v1 locality=a stage=prod\n")
	want := &configv1.Endpoint{Address: "10.0.0.1:80", Weight: 7, Priority: 2, Locality: "a", Metadata: []*configv1.Metadata{
		{Name: "stage", Value: "prod"}, {Name: "version", Value: "v1"},
	}}
	if got := step(); got.err != nil || len(got.endpoints) != 1 || !proto.Equal(got.endpoints[0], want) {
		t.Errorf("%v %v, want %v", got.endpoints, got.err, want)
	}
	if got := step(); got.err != nil || got.endpoints != nil {
		t.Errorf("a file that did not change: %v %v", got.endpoints, got.err)
	}
	for text, want := range map[string]string{
		"":                           "half written",
		"10.0.0.1:80\napp:80\n":      "line 2",
		"10.0.0.1:80\n10.0.0.1:80\n": "on line 1 already",
		"10.0.0.1:80 0\n":            "weight",
		"10.0.0.1:80 1 2\n":          "KEY=VALUE",
		"10.0.0.1:80 priority=128\n": "0 to 127",
		"10.0.0.1:80 a=1 a=2\n":      "twice",
		"10.0.0.1:80 =2\n":           "KEY=VALUE",
		"unix:relative\n":            "Unix socket",
	} {
		put(text)
		for range 2 { // the second look does not read it and still says what is wrong
			if got := step(); got.err == nil || !strings.Contains(got.err.Error(), want) {
				t.Errorf("%q: %v, want %q", text, got.err, want)
			}
		}
	}
}

func FuzzReply(f *testing.F) {
	name := dnsmessage.MustNewName("a.")
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{Response: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeSRV, Class: dnsmessage.ClassINET}},
		Answers:   []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}, Body: srv(1, 2, 3, "b")}},
	}
	packed, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Fuzz(func(t *testing.T, reply []byte) {
		got, truncated, err := read(reply, name, dnsmessage.TypeSRV)
		if err == nil && !truncated && len(got.services) == 0 {
			t.Fatal("an answer without records and without an error")
		}
	})
}

func FuzzFile(f *testing.F) {
	f.Add("10.0.0.1:80 5\nunix:/x # y\n")
	f.Add("10.0.0.1:80 5 priority=1 locality=a version=v1\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseFile(text)
		if err != nil {
			return
		}
		for _, e := range list {
			if again, err := parseAddress(e.GetAddress()); err != nil || again != e.GetAddress() || e.GetWeight() == 0 {
				t.Fatalf("%v: %v", e, err)
			}
		}
	})
}

// TestFailureBackOff: after each look-up that failed in a row the next one may wait twice as long, within the bounds.
func TestFailureBackOff(t *testing.T) {
	for _, test := range []struct {
		name  string
		spec  *configv1.DnsDiscovery
		least time.Duration
		most  []time.Duration // after so many failures before
	}{
		{"by min_ttl", &configv1.DnsDiscovery{}, 5 * time.Second, []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 50 * time.Second, 50 * time.Second}},
		{"as written", &configv1.DnsDiscovery{FailureIntervalMs: 1000, MaxFailureIntervalMs: 3000}, time.Second, []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second}},
		{"always the same", &configv1.DnsDiscovery{FailureIntervalMs: 1000, MaxFailureIntervalMs: 1000}, time.Second, []time.Duration{time.Second, time.Second}},
	} {
		for before, most := range append(test.most, test.most[len(test.most)-1]) {
			if before == len(test.most) {
				before = 1 << 40 // for years
			}
			var longest time.Duration
			for range 1000 {
				got := pause(test.spec, 5*time.Second, before)
				if longest = max(longest, got); got < test.least || got > most {
					t.Fatalf("%s, %d before: %v, want %v to %v", test.name, before, got, test.least, most)
				}
			}
			if middle := (test.least + most) / 2; longest < middle { // one in 2^1000 by chance
				t.Errorf("%s, %d before: %v at most of 1000", test.name, before, longest)
			}
		}
	}
}
