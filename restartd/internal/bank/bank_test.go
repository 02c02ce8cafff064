package bank

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shelf is a supervisor's descriptor store: it keeps duplicates under their names.
type shelf struct {
	t   *testing.T
	fds map[string]int
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{t: t, fds: map[string]int{}}
	t.Cleanup(func() {
		for _, fd := range s.fds {
			unix.Close(fd)
		}
	})
	return s
}

func (s *shelf) StoreFD(name string, fd int) error {
	if len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 127 || r == ':' }) {
		s.t.Errorf("%q is no name for a descriptor", name)
	}
	if _, ok := s.fds[name]; ok {
		s.t.Errorf("%q stored twice", name)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.fds[name] = dup
	return nil
}

func (s *shelf) RemoveFD(name string) error {
	fd, ok := s.fds[name]
	if !ok {
		s.t.Errorf("%q removed and was not stored", name)
		return nil
	}
	delete(s.fds, name)
	return unix.Close(fd)
}

// inherit is what the next restartd is started with.
func (s *shelf) inherit() []Inherited {
	var out []Inherited
	for name, fd := range s.fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, Inherited{name, dup})
	}
	return out
}

// fuse holds what After was given until the test lights it.
type fuse struct{ pending map[int]func() }

func (f *fuse) after(_ time.Duration, do func()) func() bool {
	if f.pending == nil {
		f.pending = map[int]func(){}
	}
	id := len(f.pending)
	for f.pending[id] != nil {
		id++
	}
	f.pending[id] = do
	return func() bool { delete(f.pending, id); return true }
}

func (f *fuse) burn() {
	all := f.pending
	f.pending = nil
	for _, do := range all {
		do()
	}
}

type bench struct {
	*Bank
	*shelf
	*fuse
}

func newBench(t *testing.T, s *shelf) bench {
	f := &fuse{}
	b := bench{New(Options{Store: s, Log: slog.New(slog.DiscardHandler), Grace: time.Second, After: f.after}), s, f}
	t.Cleanup(func() {
		for _, groups := range []map[string]*group{b.groups, b.adopted} {
			for _, g := range groups {
				for _, s := range g.shards {
					unix.Close(s.fd)
				}
			}
		}
	})
	return b
}

func (b bench) apply(t *testing.T, workers int, listeners ...Listener) {
	t.Helper()
	if r := b.Prepare(listeners, workers); r != nil {
		t.Fatalf("refused: %v", r)
	}
	b.Commit()
}

func (b bench) sockets(t *testing.T, names ...string) []Socket {
	t.Helper()
	all, err := b.Sockets(names)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range all {
			unix.Close(s.FD)
		}
	})
	return all
}

func web(addresses ...string) Listener {
	l := Listener{Name: "web"}
	for _, a := range addresses {
		l.Addresses = append(l.Addresses, Address{Address: a})
	}
	return l
}

func getsockopt(t *testing.T, fd, level, opt int) int {
	t.Helper()
	v, err := unix.GetsockoptInt(fd, level, opt)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func nonblocking(t *testing.T, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.O_NONBLOCK != 0
}

func TestShardsShareOnePort(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 3, web("127.0.0.1:0", "127.0.0.1:0"))
	all := b.sockets(t, "web")
	if len(all) != 6 {
		t.Fatalf("%d sockets, want 2 addresses of 3 shards", len(all))
	}
	for i, s := range all {
		if s.Bound != all[i/3*3].Bound || strings.HasSuffix(s.Bound, ":0") {
			t.Errorf("shard %d bound to %s, its first to %s", i, s.Bound, all[i/3*3].Bound)
		}
		if s.Index != i/3 || s.Shard != i%3 || s.Shards != 3 || s.Shared || s.Address != "127.0.0.1:0" || s.Listener != "web" {
			t.Errorf("socket %d is %+v", i, s)
		}
		bound, err := boundTo(s.FD)
		if err != nil || bound.String() != s.Bound {
			t.Errorf("kernel says %v %v, the bank %s", bound, err, s.Bound)
		}
		for _, o := range []struct {
			what               string
			level, opt, wanted int
		}{
			{"SO_ACCEPTCONN", unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1},
			{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
			{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"TCP_DEFER_ACCEPT", unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 0},
		} {
			if got := getsockopt(t, s.FD, o.level, o.opt); got != o.wanted {
				t.Errorf("%s = %d, want %d", o.what, got, o.wanted)
			}
		}
		if !nonblocking(t, s.FD) {
			t.Error("O_NONBLOCK is not set")
		}
		if f, _ := unix.FcntlInt(uintptr(s.FD), unix.F_GETFD, 0); f&unix.FD_CLOEXEC == 0 {
			t.Error("FD_CLOEXEC is not set")
		}
	}
	if all[0].Bound == all[3].Bound {
		t.Error("two addresses with port 0 share a port")
	}
	if len(b.fds) != 6 {
		t.Errorf("%d sockets in the store, want 6", len(b.fds))
	}
}

func TestAcceptedSocketsInheritNodelay(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 1, web("127.0.0.1:0"))
	s := b.sockets(t)[0]
	c, err := net.Dial("tcp", s.Bound)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fd := accept(t, s.FD)
	defer unix.Close(fd)
	if getsockopt(t, fd, unix.IPPROTO_TCP, unix.TCP_NODELAY) != 1 {
		t.Error("an accepted socket lacks TCP_NODELAY")
	}
}

// accept waits for a connection on a non-blocking listener.
func accept(t *testing.T, fd int) int {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(p, 5000); err == unix.EINTR {
			continue
		} else if err != nil || n == 0 {
			t.Fatalf("nothing to accept: %d %v", n, err)
		}
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

func TestDeferAcceptAndBacklogFollowTheConfiguration(t *testing.T) {
	b := newBench(t, newShelf(t))
	l := web("127.0.0.1:0")
	l.DeferAccept = true
	b.apply(t, 1, l)
	s := b.sockets(t)[0]
	if getsockopt(t, s.FD, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT) == 0 {
		t.Error("TCP_DEFER_ACCEPT is off")
	}
	l.DeferAccept = false
	l.Backlog = 7
	b.apply(t, 1, l)
	if getsockopt(t, s.FD, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT) != 0 {
		t.Error("TCP_DEFER_ACCEPT stayed on")
	}
	info, err := unix.GetsockoptTCPInfo(s.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	if info.Sacked != 7 { // of a listening socket: its backlog
		t.Errorf("backlog %d, want 7", info.Sacked)
	}
}

func TestWildcardsOfBothFamiliesCoexist(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 2, web("[::]:0"))
	_, port, _ := net.SplitHostPort(b.sockets(t)[0].Bound)
	b.apply(t, 2, web("[::]:0", "0.0.0.0:"+port, "127.0.0.1:"+port))
	if n := len(b.sockets(t)); n != 6 {
		t.Errorf("%d sockets, want 6", n)
	}
}

func TestAddressInUseIsRefusedByName(t *testing.T) {
	foreign, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	// A foreigner that would share the port with everybody.
	generous := -1
	{
		p, _ := parse("127.0.0.1:0")
		if generous, err = listenTCP(p, 0, false); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(generous)
	}
	shared, _ := boundTo(generous)
	_, port, _ := net.SplitHostPort(foreign.Addr().String())
	for _, c := range []struct{ name, address, holder string }{
		{"same address", foreign.Addr().String(), foreign.Addr().String()},
		{"wildcard over it", "0.0.0.0:" + port, foreign.Addr().String()},
		{"foreigner with SO_REUSEPORT", shared.String(), shared.String()},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, newShelf(t))
			r := b.Prepare([]Listener{web("127.0.0.1:0", c.address)}, 2)
			if len(r) != 1 || r[0].Listener != "web" || r[0].Field != "address[1]" {
				t.Fatalf("refusals %+v", r)
			}
			for _, part := range []string{"address in use", c.holder, "ss -ltnp"} {
				if !strings.Contains(r[0].Message, part) {
					t.Errorf("message lacks %q: %s", part, r[0].Message)
				}
			}
			if len(b.fds) != 0 || len(b.groups) != 0 {
				t.Errorf("a refusal left %d stored, %d open", len(b.fds), len(b.groups))
			}
			b.Commit()
			if len(b.Listeners()) != 0 {
				t.Error("a refused snapshot was committed")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", filepath.Join(dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	for _, c := range []struct {
		name      string
		listeners []Listener
		field     string
		message   string
	}{
		{"no address", []Listener{web("localhost:80")}, "address[0]", "neither IP:port nor unix:/path"},
		{"empty", []Listener{web("")}, "address[0]", "neither IP:port"},
		{"not ours", []Listener{web("192.0.2.1:0")}, "address[0]", "no interface"},
		{"twice", []Listener{web("127.0.0.1:1"), {Name: "b", Addresses: []Address{{Address: "127.0.0.1:1"}}}}, "address[0]", ""},
		{"relative path", []Listener{web("unix:a.sock")}, "address[0]", "absolute"},
		{"path too long", []Listener{web("unix:/" + strings.Repeat("a", 107))}, "address[0]", "holds 107"},
		{"NUL in a path", []Listener{web("unix:/a\x00b")}, "address[0]", "NUL"},
		{"a file in the way", []Listener{web("unix:" + file)}, "address[0]", "is not a socket"},
		{"a live socket in the way", []Listener{web("127.0.0.1:0", "unix:"+filepath.Join(dir, "live"))}, "address[1]", "address in use"},
		{"no directory", []Listener{web("unix:" + dir + "/none/s")}, "address[0]", "does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, newShelf(t))
			r := b.Prepare(c.listeners, 2)
			if len(r) == 0 || r[0].Field != c.field || !strings.Contains(r[0].Message, c.message) {
				t.Fatalf("refusals %+v, want %s %q", r, c.field, c.message)
			}
			if len(b.fds) != 0 {
				t.Errorf("a refusal left %v in the store", b.fds)
			}
		})
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("the file in the way is gone")
	}
}

func TestOneAddressBelongsToOneListener(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 1, web("127.0.0.1:0"))
	bound := b.Listeners()[0].Addresses[0]
	b.apply(t, 1)
	b.burn()
	r := b.Prepare([]Listener{web(bound), {Name: "api", Addresses: []Address{{Address: bound}}}}, 1)
	if len(r) != 1 || r[0].Listener != "api" || !strings.Contains(r[0].Message, `listener "web"`) {
		t.Errorf("refusals %+v", r)
	}
}

func TestAbortClosesOnlyWhatWasNew(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 2, web("127.0.0.1:0"))
	before := b.sockets(t)[0].Bound
	if r := b.Prepare([]Listener{web("127.0.0.1:0", "127.0.0.2:0")}, 2); r != nil {
		t.Fatal(r)
	}
	var fresh string
	for _, s := range b.sockets(t, "web") {
		if s.Index == 1 {
			fresh = s.Bound
			unix.Close(s.FD)
		}
	}
	if fresh == "" {
		t.Fatal("a prepared address is not handed out: proxyd could not build")
	}
	b.Abort()
	if n := len(b.fds); n != 2 {
		t.Errorf("%d sockets stored after the abort, want 2", n)
	}
	if _, err := net.Dial("tcp", before); err != nil {
		t.Errorf("the running address is gone: %v", err)
	}
}

func TestAddressThatLeavesClosesAfterTheGrace(t *testing.T) {
	b := newBench(t, newShelf(t))
	dir := t.TempDir()
	b.apply(t, 2, web("127.0.0.1:0", "unix:"+dir+"/s"))
	bound := b.Listeners()[0].Addresses[0]
	b.apply(t, 2)
	// Nothing new comes in, and nothing is refused yet: the first packet is dropped.
	if _, err := net.DialTimeout("tcp", bound, 50*time.Millisecond); err == nil || !err.(net.Error).Timeout() {
		t.Errorf("dial within the grace: %v, want no answer", err)
	}
	b.burn()
	if _, err := net.Dial("tcp", bound); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial: %v, want refused", err)
	}
	if _, err := os.Lstat(dir + "/s"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket file is still there: %v", err)
	}
	if len(b.fds) != 0 {
		t.Errorf("still stored: %v", b.fds)
	}
}

func TestAddressThatComesBackWithinTheGraceStays(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 1, web("127.0.0.1:0"))
	bound := b.Listeners()[0].Addresses[0]
	b.apply(t, 1)
	if r := b.Prepare([]Listener{web("127.0.0.1:0")}, 1); r != nil {
		t.Fatal(r)
	}
	b.burn() // the grace ends between Prepare and Commit
	b.Commit()
	b.burn()
	if got := b.Listeners()[0].Addresses[0]; got != bound {
		t.Errorf("rebound to %s, was %s", got, bound)
	}
	if c, err := net.DialTimeout("tcp", bound, 10*time.Second); err != nil {
		t.Errorf("what came back takes nothing new: %v", err)
	} else {
		c.Close()
	}
	if c, err := net.Dial("tcp", bound); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

func TestRenamingAListenerKeepsItsSockets(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 1, web("127.0.0.1:0"))
	bound := b.Listeners()[0].Addresses[0]
	b.apply(t, 1)
	b.burn()
	b.apply(t, 1, web(bound))
	c, err := net.Dial("tcp", bound) // waits in the queue
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b.apply(t, 1, Listener{Name: "site", Addresses: []Address{{Address: bound}}})
	b.burn()
	fd := accept(t, b.sockets(t, "site")[0].FD)
	defer unix.Close(fd)
	if _, err := b.Sockets([]string{"web"}); err == nil || !strings.Contains(err.Error(), `no listener "web"`) {
		t.Errorf("the old name answers: %v", err)
	}
}

func TestShardsNeverShrinkAndGrowOnlyWhenTold(t *testing.T) {
	b := newBench(t, newShelf(t))
	for _, c := range []struct {
		workers int
		grow    bool
		want    int
	}{{2, false, 2}, {1, false, 2}, {1, true, 2}, {4, false, 2}, {4, true, 4}, {3, true, 4}} {
		b.apply(t, c.workers, web("127.0.0.1:0"))
		if c.grow {
			b.Grow()
		}
		if n := len(b.sockets(t)); n != c.want {
			t.Errorf("workers %d, grow %t: %d shards, want %d", c.workers, c.grow, n, c.want)
		}
	}
	if len(b.fds) != 4 {
		t.Errorf("%d stored, want 4", len(b.fds))
	}
}

func TestUnixListener(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/s"
	stale, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(stale, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	unix.Close(stale)

	b := newBench(t, newShelf(t))
	l := web("unix:" + path)
	l.Addresses[0].Mode = 0o620
	b.apply(t, 4, l)
	all := b.sockets(t)
	if len(all) != 1 || !all[0].Shared || all[0].Shards != 1 || !nonblocking(t, all[0].FD) {
		t.Fatalf("sockets %+v", all)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != 0o620 {
		t.Errorf("mode %v %v, want 0620", st.Mode(), err)
	}
	l.Addresses[0].Mode = 0
	b.apply(t, 4, l)
	if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("mode %v %v, want the default 0666", st.Mode(), err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// A file that somebody else put there is not ours to unlink.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("a foreign file was unlinked: %v", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	b := newBench(t, newShelf(t))
	path := t.TempDir() + "/s"
	b.apply(t, 2, web("127.0.0.1:0", "unix:"+path))
	if r := b.Prepare([]Listener{web("127.0.0.1:0", "127.0.0.3:0")}, 2); r != nil {
		t.Fatal(r)
	}
	b.Close()
	if len(b.fds) != 0 {
		t.Errorf("still stored: %v", b.fds)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the socket file is still there")
	}
}
