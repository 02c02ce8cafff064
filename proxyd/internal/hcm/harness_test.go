package hcm

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// frozen is a kernel whose clock the test moves. It never waits.
type frozen struct {
	poller.Poller
	now int64
}

const wallStart = 1_700_000_000 * int64(time.Second) // what date says

func (f *frozen) Now() int64  { return f.now }
func (f *frozen) Wall() int64 { return wallStart } // Date stays the same
func (f *frozen) Wait(events []poller.Event, _ int64, _ bool) int {
	return f.Poller.Wait(events, 0, false)
}

// world is one worker with a connection manager and one upstream host, all turned by the test's own goroutine.
type world struct {
	t        testing.TB
	clock    *frozen
	worker   *worker.Worker
	manager  *upstream.Manager
	filter   *Filter
	listener *listener.Listener
	http     *counters.HTTP
	cluster  *counters.Cluster
	listen   int // of the upstream
	logged   *record
	ids      uint64
}

// record keeps what the access log was told.
type record struct{ lines []logged }

type logged struct {
	status   int
	flags    string
	details  string
	received uint64
	sent     uint64
	path     string
	method   header.MethodID
	duration int64
}

func (r *record) Log(s *stream.Stream) {
	r.lines = append(r.lines, logged{
		s.Status, s.Flags.String(), s.Details, s.BytesReceived, s.BytesSent, string(s.Request.Path()), s.Request.MethodID(), s.End - s.Start,
	})
}

// defaults is what configd writes into an Http object.
func defaults() *configv1.Http {
	return &configv1.Http{
		Name: "web", UseRemoteAddress: true, PreserveExternalRequestId: true, UpgradeTypes: []string{"websocket"},
		Timeouts: &configv1.HttpTimeouts{
			IdleMs: 3_600_000, RequestHeadersMs: 10_000, StreamIdleMs: 300_000, DelayedCloseMs: 1_000,
		},
		Limits: &configv1.HttpLimits{MaxRequestHeadersBytes: 61_440, MaxHeadersCount: 100, MaxRequestLineBytes: 16_384},
		VirtualHosts: []*configv1.VirtualHost{{
			Name: "all", Domains: []string{"*"},
			Routes: []*configv1.Route{{
				Name:   "/*",
				Match:  &configv1.RouteMatch{Path: &configv1.RouteMatch_Prefix{Prefix: "/"}},
				Action: &configv1.Route_Route{Route: &configv1.RouteAction{Clusters: []*configv1.WeightedCluster{{Cluster: "up", Weight: 1}}}},
			}},
		}},
	}
}

func newWorld(t testing.TB, h *configv1.Http, filters ...stream.Factory) *world {
	t.Helper()
	p, err := epoll.New()
	must(t, err)
	t.Cleanup(p.Destroy)
	listen, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Bind(listen, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, unix.Listen(listen, 128))
	name, err := unix.Getsockname(listen)
	must(t, err)
	address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	clock := &frozen{Poller: p, now: int64(time.Hour)}
	x := assemble(t, clock, &configv1.Cluster{Name: "up", Endpoints: []*configv1.Endpoint{{Address: address.String()}}}, h, filters...)
	x.clock, x.listen = clock, listen
	t.Cleanup(func() { x.stopListening() })
	return x
}

// assemble makes a world over any poller. Its tests hold that nothing is left under way at their end.
func assemble(t testing.TB, p poller.Poller, up *configv1.Cluster, h *configv1.Http, filters ...stream.Factory) *world {
	t.Helper()
	w, err := worker.New(0, p)
	must(t, err)
	x := &world{
		t: t, worker: w, manager: upstream.NewManager(w, tlstransport.NewSide(w)),
		http: new(counters.HTTP), cluster: new(counters.Cluster), logged: &record{}, listen: -1,
	}
	built, err := cluster.Build(up, 0, nil)
	must(t, err)
	x.manager.Update([]*upstream.Config{{Cluster: built, Cells: []*counters.Cluster{x.cluster}}})
	gauge := new(uint64)
	x.listener = &listener.Listener{Counters: listener.Counters{Active: gauge, Worker: new(uint64)}}
	x.filter = &Filter{Worker: w, Shared: NewShared(w, x.manager)}
	x.configure(h, filters...)
	t.Cleanup(func() {
		x.filter.CloseAll()
		x.turn()
		if x.filter.Active() != 0 || x.http[counters.HTTPDownstreamRqActive] != 0 {
			t.Errorf("%d requests (%d counted) are under way after every connection has ended", x.filter.Active(), x.http[counters.HTTPDownstreamRqActive])
		}
		for _, gauge := range []int{counters.ClusterUpstreamRqActive, counters.ClusterUpstreamRqPendingActive, counters.ClusterUpstreamRqRetryActive} {
			if x.cluster[gauge] != 0 || x.cluster[gauge+1] != 0 {
				t.Errorf("requests are still under way upstream: cell %d is %d, of high priority %d", gauge, x.cluster[gauge], x.cluster[gauge+1])
			}
		}
	})
	return x
}

func (x *world) configure(h *configv1.Http, filters ...stream.Factory) {
	x.t.Helper()
	config, err := NewConfig(h, Options{
		Routes: &filter.Compiler{Cluster: func(name string) cluster.Handle {
			if name == "up" {
				return 0
			}
			return cluster.NoHandle
		}},
		Cells: []*counters.HTTP{x.http}, Logs: []stream.AccessLog{x.logged},
	})
	must(x.t, err)
	config.Filters = filters
	x.filter.Config = config
}

func (x *world) stopListening() {
	if x.listen >= 0 {
		unix.Close(x.listen)
		x.listen = -1
	}
}

func (x *world) turn() {
	for range 3 {
		x.worker.Turn(0)
	}
}

// until turns the loop until a condition holds.
func (x *world) until(what string, done func() bool) {
	x.t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); {
		x.worker.Turn(0)
		if time.Now().After(end) {
			x.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// pass moves the clock and lets timers fire.
func (x *world) pass(d time.Duration) {
	x.clock.now += int64(d)
	x.turn()
}

// last is what the access log was told last.
func (x *world) last() logged {
	x.t.Helper()
	if len(x.logged.lines) == 0 {
		x.t.Fatal("the access log has no line")
	}
	return x.logged.lines[len(x.logged.lines)-1]
}

// peer is the test's end of a connection, of a client or of the upstream.
type peer struct {
	x    *world
	fd   int
	got  []byte
	eof  bool
	rst  bool
	stop bool // reads nothing by itself
}

// client opens a connection to the manager.
func (x *world) client() *peer {
	x.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(x.t, err)
	return x.accepted(fds[0], fds[1], netip.AddrPort{})
}

// tcpClient is client with an address, and with resets.
func (x *world) tcpClient() *peer {
	x.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(x.t, err)
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(x.t, err)
	must(x.t, unix.Connect(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}))
	must(x.t, unix.SetNonblock(fd, true))
	c, err := l.Accept()
	must(x.t, err)
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(x.t, err)
	var ours int
	must(x.t, raw.Control(func(f uintptr) { ours, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) }))
	must(x.t, err)
	c.Close()
	must(x.t, unix.SetNonblock(ours, true))
	return x.accepted(fd, ours, netip.MustParseAddrPort("192.0.2.7:4711"))
}

func (x *world) accepted(theirs, ours int, from netip.AddrPort) *peer {
	x.accept(int32(ours), from)
	p := &peer{x: x, fd: theirs}
	x.t.Cleanup(p.close)
	return p
}

func (x *world) accept(fd int32, from netip.AddrPort) {
	*x.listener.Counters.Active++
	x.ids++
	c, errno := conn.Accept(x.worker, fd, from, x.ids, nil, &conn.Options{HighWatermark: x.filter.Config.BufferLimit})
	if errno != 0 {
		x.t.Fatal(errno)
	}
	x.filter.Accept(c, x.listener)
}

// upstream takes the next connection that the proxy makes.
func (x *world) upstream() *peer {
	x.t.Helper()
	var p *peer
	x.until("a connection to the upstream", func() bool {
		fd, _, err := unix.Accept4(x.listen, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return false
		}
		p = &peer{x: x, fd: fd}
		return true
	})
	x.t.Cleanup(p.close)
	return p
}

func (p *peer) send(text string) {
	p.x.t.Helper()
	for data := []byte(text); len(data) > 0; {
		n, err := unix.Write(p.fd, data)
		if err == unix.EAGAIN {
			p.x.worker.Turn(0)
			continue
		}
		must(p.x.t, err)
		data = data[n:]
	}
	p.x.turn()
}

func (p *peer) pull() {
	buf := make([]byte, 64<<10)
	for !p.eof && !p.rst && !p.stop {
		n, err := unix.Read(p.fd, buf)
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil:
			p.rst = true
		case n == 0:
			p.eof = true
		default:
			p.got = append(p.got, buf[:n]...)
		}
	}
}

// expect waits for exactly these bytes.
func (p *peer) expect(want string) {
	p.x.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; {
		p.x.worker.Turn(0)
		p.pull()
		if len(p.got) >= len(want) || p.eof || p.rst || time.Now().After(end) || !strings.HasPrefix(want, string(p.got)) {
			break
		}
	}
	if !bytes.HasPrefix(p.got, []byte(want)) {
		p.x.t.Fatalf("got  %q (eof %v, reset %v)\nwant %q", p.got, p.eof, p.rst, want)
	}
	p.got = p.got[len(want):]
}

// nothing holds that nothing more has come.
func (p *peer) nothing() {
	p.x.t.Helper()
	p.x.turn()
	p.pull()
	if len(p.got) > 0 || p.eof || p.rst {
		p.x.t.Fatalf("got %q (eof %v, reset %v), want nothing", p.got, p.eof, p.rst)
	}
}

// expectEnd waits for the end of the connection, in order.
func (p *peer) expectEnd() {
	p.x.t.Helper()
	p.x.until("the end of a connection", func() bool { p.pull(); return p.eof || p.rst })
	if len(p.got) > 0 || p.rst {
		p.x.t.Fatalf("got %q (eof %v, reset %v), want an orderly end", p.got, p.eof, p.rst)
	}
}

// expectGone waits for the end of the connection, whichever.
func (p *peer) expectGone() {
	p.x.t.Helper()
	p.x.until("the end of a connection", func() bool { p.pull(); return p.eof || p.rst })
}

func (p *peer) shutdown() {
	must(p.x.t, unix.Shutdown(p.fd, unix.SHUT_WR))
	p.x.turn()
}

func (p *peer) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
		p.x.turn()
	}
}

// reset closes with RST (TCP only).
func (p *peer) reset() {
	must(p.x.t, unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	p.close()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lines joins the lines of a message.
