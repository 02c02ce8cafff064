package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// suite is a real restartd under a supervisor, with a configd and a proxyd that are fakes.
type suite struct {
	*testing.T
	*supervisor
	configd *fakeConfigd
	client  restartv1.RestartClient
}

func start(t *testing.T, args ...string) *suite {
	dir, err := os.MkdirTemp("", "restartd") // t.TempDir's may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &suite{T: t, configd: startConfigd(t, dir)}
	s.supervisor = supervise(t, dir, append([]string{"--proxyd", os.Args[0], "--close-grace", "50ms"}, args...)...)
	s.supervisor.start()
	conn, err := peer.Dial(filepath.Join(dir, "restartd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.client = restartv1.NewRestartClient(conn)
	return s
}

// serving is a suite whose generation 1 answers on the returned address.
func serving(t *testing.T, args ...string) (*suite, string) {
	s := start(t, args...)
	if r := s.configd.apply(t, runtime(2, 700*time.Millisecond), listener("web", "127.0.0.1:0", "unix:"+s.dir+"/web")); r != nil {
		t.Fatalf("refused: %v", r)
	}
	st := s.until("1 serving")
	return s, st.GetListeners()[0].GetAddresses()[0]
}

func (s *suite) status() *restartv1.StatusReply {
	ctx, cancel := context.WithTimeout(s.Context(), time.Second)
	defer cancel()
	r, err := s.client.Status(ctx, &restartv1.StatusRequest{})
	if err != nil {
		return nil
	}
	return r
}

// until waits for the table to hold a line such as "2 serving".
func (s *suite) until(lines ...string) *restartv1.StatusReply {
	s.Helper()
	var last *restartv1.StatusReply
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if last = s.status(); last != nil {
			table := ""
			for _, g := range last.GetGenerations() {
				table += fmt.Sprintf("|%d %s", g.GetNumber(), strings.ToLower(strings.TrimPrefix(g.GetState().String(), "STATE_")))
			}
			missing := false
			for _, l := range lines {
				missing = missing || !strings.Contains(table+"|", "|"+l+"|")
			}
			if !missing {
				return last
			}
		}
	}
	s.Fatalf("no %q in %v", lines, last)
	return nil
}

func generation(r *restartv1.StatusReply, n uint64) *restartv1.Generation {
	for _, g := range r.GetGenerations() {
		if g.GetNumber() == n {
			return g
		}
	}
	return &restartv1.Generation{}
}

func (s *suite) killGeneration(n uint64) {
	s.Helper()
	pid := int(generation(s.status(), n).GetPid())
	if pid <= 1 {
		s.Fatalf("generation %d has no process", n)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
}

// clients connect again and again until they are stopped; cut counts what the end of a process may cost, failures what
// nothing may.
type clients struct {
	stop         chan struct{}
	all          sync.WaitGroup
	served, cut  atomic.Int64
	mu           sync.Mutex
	failures     []error
	lastAnswered atomic.Value
}

func load(t *testing.T, addresses ...string) *clients {
	c := &clients{stop: make(chan struct{})}
	for i := range 4 {
		c.all.Go(func() {
			for {
				select {
				case <-c.stop:
					return
				default:
				}
				network, address := "tcp", addresses[i%len(addresses)]
				if path, ok := strings.CutPrefix(address, "unix:"); ok {
					network, address = "unix", path
				}
				c.one(network, address)
			}
		})
	}
	t.Cleanup(c.end)
	return c
}

func (c *clients) one(network, address string) {
	conn, err := net.Dial(network, address)
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		var n string
		n, err = answer(conn)
		conn.Close()
		if err == nil {
			c.served.Add(1)
			c.lastAnswered.Store(n)
			return
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.cut.Add(1)
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failures) < 10 {
		c.failures = append(c.failures, err)
	}
}

func (c *clients) end() {
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	c.all.Wait()
}

// finish stops the load and checks it: none refused, none unanswered, at most cut connections ended with a process.
func (c *clients) finish(t *testing.T, cut int64) {
	t.Helper()
	c.end()
	if len(c.failures) > 0 {
		t.Errorf("connections failed: %v", c.failures)
	}
	if got := c.cut.Load(); got > cut {
		t.Errorf("%d connections were cut, at most %d may be", got, cut)
	}
	if c.served.Load() == 0 {
		t.Error("nothing was served")
	}
}

// past waits until n more connections were answered by generation g.
func (c *clients) past(t *testing.T, n int64, g string) {
	t.Helper()
	goal := c.served.Load() + n
	for deadline := time.Now().Add(30 * time.Second); ; {
		if c.served.Load() >= goal && c.lastAnswered.Load() == g {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("served %d of %d, last by generation %v, want %s", c.served.Load(), goal, c.lastAnswered.Load(), g)
		}
		time.Sleep(time.Millisecond)
	}
}

// program is an installed binary that misbehaves.
func (s *suite) program(mode string) string {
	path := filepath.Join(s.dir, "proxyd-"+mode)
	self, err := os.Executable()
	if err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\nRETINUE_FAKE=%s exec %s \"$@\"\n", mode, self), 0o755); err != nil {
		s.Fatal(err)
	}
	return path
}

// upgrade follows an upgrade to its end.
func (s *suite) upgrade(r *restartv1.UpgradeRequest) (steps []string, last *restartv1.UpgradeEvent) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
	defer cancel()
	stream, err := s.client.Upgrade(ctx, r)
	if err != nil {
		s.Fatal(err)
	}
	for {
		e, err := stream.Recv()
		if err != nil {
			if last == nil || !last.GetDone() {
				s.Errorf("the upgrade's stream ended with %v after %v", err, steps)
			}
			return steps, last
		}
		steps, last = append(steps, e.GetStep()), e
	}
}

func TestCrashOfProxyd(t *testing.T) {
	s, address := serving(t)
	c := load(t, address, "unix:"+s.dir+"/web")
	c.past(t, 100, "1")
	for n := range uint64(3) {
		s.killGeneration(n + 1)
		s.until(fmt.Sprintf("%d serving", n+2))
		c.past(t, 100, fmt.Sprint(n+2))
	}
	c.finish(t, 3*4) // what each client had under way at each kill
	if g := generation(s.status(), 4); g.GetRestarts() != 3 {
		t.Errorf("restarts %d, want 3", g.GetRestarts())
	}
}

func TestUpgrade(t *testing.T) {
	s, address := serving(t)
	c := load(t, address, "unix:"+s.dir+"/web")
	c.past(t, 100, "1")
	for n := range uint64(2) {
		steps, last := s.upgrade(&restartv1.UpgradeRequest{WaitDrained: true})
		if got := strings.Join(steps, " "); got != "preflight start warm ready commit probation drain end" {
			t.Errorf("steps %s", got)
		}
		if !last.GetOk() || last.GetGeneration() != n+2 {
			t.Errorf("last event %v", last)
		}
		c.past(t, 100, fmt.Sprint(n+2))
	}
	c.finish(t, 0)
	if st := s.until("1 gone", "2 gone", "3 serving"); len(st.GetHistory()) != 2 {
		t.Errorf("history %q", st.GetHistory())
	}
}

func TestUpgradeThatFails(t *testing.T) {
	s, address := serving(t, "--ready-timeout", "1s")
	c := load(t, address)
	candidate := uint64(1)
	for _, f := range []struct{ mode, step, want string }{
		{"exit", "start", "exit status 3"},
		{"hang", "start", "not ready within 1s"},
		{"mute", "commit", "did not accept within 5s"},
		{"crash", "rollback", "generation 1 serves again"},
	} {
		candidate++
		_, last := s.upgrade(&restartv1.UpgradeRequest{Binary: s.program(f.mode), ProbationMs: ptr(20_000)})
		if last.GetOk() || last.GetStep() != f.step || !strings.Contains(last.GetMessage(), f.want) {
			t.Errorf("%s: last event %v, want %s: %q", f.mode, last, f.step, f.want)
		}
		s.until("1 serving", fmt.Sprintf("%d failed", candidate))
		c.past(t, 50, "1")
	}
	c.finish(t, 4) // the crash in probation had accepted
}

func ptr(v int64) *int64 { return &v }

func TestUpgradeAloneAndWithoutItsCaller(t *testing.T) {
	s, _ := serving(t)
	ctx, hangUp := context.WithCancel(t.Context())
	stream, err := s.client.Upgrade(ctx, &restartv1.UpgradeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	second, err := s.client.Upgrade(t.Context(), &restartv1.UpgradeRequest{})
	if err == nil {
		_, err = second.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "from generation 1 to 2") {
		t.Errorf("a second upgrade: %v", err)
	}
	hangUp()
	s.until("1 gone", "2 serving")
}

func TestCrashOfRestartd(t *testing.T) {
	s, address := serving(t)
	c := load(t, address, "unix:"+s.dir+"/web")
	c.past(t, 100, "1")
	before := generation(s.status(), 1).GetPid()
	for range 2 {
		s.kill()
		c.past(t, 100, "1") // traffic does not need restartd
		s.supervisor.start()
		st := s.until("1 serving")
		if got := generation(st, 1).GetPid(); got != before {
			t.Errorf("generation 1 is process %d, was %d", got, before)
		}
		for deadline := time.Now().Add(30 * time.Second); len(st.GetListeners()) == 0 && time.Now().Before(deadline); {
			st = s.until("1 serving") // the table is there before the last-good copy's listeners are
		}
		if len(st.GetListeners()) == 0 {
			t.Fatal("no listener is in the bank")
		}
		if got := st.GetListeners()[0].GetAddresses()[0]; got != address {
			t.Errorf("listens on %s, did on %s", got, address)
		}
	}
	// It is its keeper though it is not its parent.
	s.killGeneration(1)
	s.until("1 failed", "2 serving")
	c.past(t, 100, "2")
	c.finish(t, 4)
	if _, last := s.upgrade(&restartv1.UpgradeRequest{}); !last.GetOk() {
		t.Errorf("upgrade afterwards: %v", last)
	}
}

func TestCrashOfBoth(t *testing.T) {
	s, address := serving(t)
	s.killBoth()
	// Nobody accepts now; connections wait in the sockets that the supervisor holds.
	c := load(t, address)
	s.supervisor.start()
	s.until("2 serving")
	c.past(t, 100, "2")
	c.finish(t, 0)
}

func (s *suite) killBoth() {
	s.Helper()
	pid := int(generation(s.status(), 1).GetPid())
	s.kill()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
}

func TestAddressesComeAndGo(t *testing.T) {
	s, address := serving(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	rt, web := runtime(2, 0), listener("web", "127.0.0.1:0", "unix:"+s.dir+"/web")
	refused := s.configd.apply(t, rt, web, listener("api", "127.0.0.1:0", taken.Addr().String()))
	if len(refused) != 1 || refused[0].GetKind() != "listener" || refused[0].GetName() != "api" || refused[0].GetField() != "address[1]" ||
		!strings.Contains(refused[0].GetMessage(), "address in use: another process listens on "+taken.Addr().String()) {
		t.Errorf("refusals %v", refused)
	}
	if n := len(s.status().GetListeners()); n != 1 {
		t.Errorf("%d listeners after a refusal, want 1", n)
	}
	if r := s.configd.apply(t, rt, web, listener("api", "127.0.0.1:0")); r != nil {
		t.Fatal(r)
	}
	st := s.status()
	if len(st.GetListeners()) != 2 || st.GetListeners()[0].GetAddresses()[0] != address {
		t.Errorf("listeners %v", st.GetListeners())
	}
	if n := s.stored(); n != 5 { // 2 shards, a unix socket, 2 shards
		t.Errorf("%d sockets with the supervisor, want 5", n)
	}
	if r := s.configd.apply(t, rt, listener("api", "127.0.0.1:0")); r != nil {
		t.Fatal(r)
	}
	for deadline := time.Now().Add(10 * time.Second); s.stored() != 2; {
		if time.Now().After(deadline) {
			t.Fatalf("%d sockets with the supervisor, want the 2 of api", s.stored())
		}
	}
}

func TestSocketsAreForGenerationsAlone(t *testing.T) {
	s, _ := serving(t)
	path := filepath.Join(s.dir, "restartd.fd.sock")
	for _, n := range []uint64{0, 1, 2} {
		if _, _, err := fetch(path, n); err == nil || !strings.Contains(err.Error(), "is not generation") {
			t.Errorf("as generation %d: %v", n, err)
		}
	}
	stream, err := s.client.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&restartv1.AttachRequest{Message: &restartv1.AttachRequest_Hello{Hello: &restartv1.AttachHello{
		Hello: hello.Mine("proxyd", "restart/v1"), Generation: 1,
	}}}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("attached as another's generation: %v", err)
	}
	s.until("1 serving")
}

func TestStopLeavesNothing(t *testing.T) {
	s, address := serving(t)
	pid := int(generation(s.status(), 1).GetPid())
	s.stop()
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("generation 1 is still there: %v", err)
	}
	for _, name := range []string{"web", "restartd.sock", "restartd.fd.sock"} {
		if _, err := os.Lstat(filepath.Join(s.dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); s.stored() != 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d sockets left with the supervisor", s.stored())
		}
	}
	if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) { // it did while the supervisor had the sockets
		t.Errorf("the address still answers: %v", err)
	}
}

func TestStartWithoutConfigdUsesTheLastGoodCopy(t *testing.T) {
	s, _ := serving(t)
	s.stop()
	s.configd.server.Stop()
	s.args = append(s.args, "--configd-patience", "1ms")
	s.supervisor.start()
	st := s.until("2 serving")
	if len(st.GetListeners()) != 1 || st.GetListeners()[0].GetName() != "web" {
		t.Errorf("listeners %v", st.GetListeners())
	}
}
