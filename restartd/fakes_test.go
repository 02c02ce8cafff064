package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	"retinue.dev/libs/preflight"
	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// TestMain is three programs: the tests, restartd, and a proxyd that answers each connection with its generation.
func TestMain(m *testing.M) {
	for i, a := range os.Args {
		switch a {
		case "--preflight":
			if err := preflight.New("proxyd", "", "restart/v1").Write(os.Stdout); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		case "--generation":
			n, _ := strconv.ParseUint(os.Args[i+1], 10, 64)
			os.Exit(fakeProxyd(os.Args[2], n))
		case "--proxyd":
			main()
		}
	}
	os.Exit(m.Run())
}

// fakeProxyd speaks restart/v1. RETINUE_FAKE makes it misbehave: "exit" at the start, "hang" before it attaches, "mute"
// when told to serve, "crash" soon after it serves.
func fakeProxyd(dir string, n uint64) int {
	p := &fake{dir: dir, n: n, mode: os.Getenv("RETINUE_FAKE")}
	switch p.mode {
	case "exit":
		return 3
	case "hang":
		select {}
	}
	conn, err := peer.Dial(filepath.Join(dir, "restartd.sock"))
	if err != nil {
		return 1
	}
	for {
		_ = p.attach(restartv1.NewRestartClient(conn))
		time.Sleep(20 * time.Millisecond)
	}
}

type fake struct {
	dir                 string
	n                   uint64
	mode                string
	fds                 []int
	accepting, draining atomic.Bool
	serving             sync.WaitGroup
}

func (p *fake) attach(client restartv1.RestartClient) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := client.Attach(ctx)
	if err != nil {
		return err
	}
	h := hello.Mine("proxyd", "restart/v1")
	if err := s.Send(&restartv1.AttachRequest{Message: &restartv1.AttachRequest_Hello{Hello: &restartv1.AttachHello{
		Hello: h, Generation: p.n, Workers: 1, Accepting: p.accepting.Load(), Draining: p.draining.Load(),
	}}}); err != nil {
		return err
	}
	if p.fds == nil {
		sockets, fds, err := fetch(filepath.Join(p.dir, "restartd.fd.sock"), p.n)
		if err != nil || len(sockets) == 0 {
			return fmt.Errorf("sockets: %v", err)
		}
		p.fds = fds
	}
	if err := s.Send(&restartv1.AttachRequest{Message: &restartv1.AttachRequest_Ready{Ready: &restartv1.Ready{SnapshotId: "s"}}}); err != nil {
		return err
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		c := m.GetCommand()
		switch {
		case c == nil:
			continue
		case c.GetServe() != nil && p.mode == "mute":
		case c.GetServe() != nil:
			p.serve()
		case c.GetStopAccepting() != nil:
			p.stop()
		case c.GetDrain() != nil:
			p.stop()
			p.draining.Store(true)
		case c.GetTerminate() != nil:
			os.Exit(0)
		}
		if err := s.Send(&restartv1.AttachRequest{Message: &restartv1.AttachRequest_Report{Report: &restartv1.Report{
			CommandId: c.GetId(), Accepting: p.accepting.Load(), Draining: p.draining.Load(),
		}}}); err != nil {
			return err
		}
	}
}

func (p *fake) serve() {
	if p.accepting.Swap(true) {
		return
	}
	if p.mode == "crash" {
		time.AfterFunc(300*time.Millisecond, func() { os.Exit(5) })
	}
	for _, fd := range p.fds {
		p.serving.Add(1)
		go func() {
			defer p.serving.Done()
			for p.accepting.Load() {
				poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				if k, err := unix.Poll(poll, 10); k == 0 || err != nil {
					continue
				}
				c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if err != nil {
					continue
				}
				unix.Write(c, []byte(strconv.FormatUint(p.n, 10)))
				unix.Close(c)
			}
		}()
	}
}

func (p *fake) stop() {
	p.accepting.Store(false)
	p.serving.Wait()
}

// fetch asks for all sockets, as proxyd does.
func fetch(path string, generation uint64) ([]*restartv1.Socket, []int, error) {
	c, err := fdpass.Dial(path)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(5 * time.Second); err != nil {
		return nil, nil, err
	}
	b, err := proto.Marshal(&restartv1.SocketsRequest{Hello: hello.Mine("proxyd", "restart/v1"), Generation: generation})
	if err != nil {
		return nil, nil, err
	}
	if err := c.Send(b, nil); err != nil {
		return nil, nil, err
	}
	var sockets []*restartv1.Socket
	var all []int
	for {
		b, fds, err := c.Recv()
		if err != nil {
			return nil, nil, err
		}
		var r restartv1.SocketsReply
		if err := proto.Unmarshal(b, &r); err != nil {
			return nil, nil, err
		}
		if r.GetError() != "" {
			return nil, nil, errors.New(r.GetError())
		}
		if len(fds) != len(r.GetSockets()) {
			return nil, nil, fmt.Errorf("%d sockets named, %d sent", len(r.GetSockets()), len(fds))
		}
		sockets, all = append(sockets, r.GetSockets()...), append(all, fds...)
		if !r.GetMore() {
			return sockets, all, nil
		}
	}
}

// fakeConfigd answers one watcher of role RESTARTD.
type fakeConfigd struct {
	configv1.UnimplementedConfigServer
	push   chan push
	server *grpc.Server
}

type push struct {
	id      string
	objects []*configv1.Object
	answer  chan []*configv1.Refusal // nil: applied
}

func startConfigd(t *testing.T, dir string) *fakeConfigd {
	l, err := peer.Listen(filepath.Join(dir, "configd.sock"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(peer.ServerOptions(peer.Same())...)
	c := &fakeConfigd{push: make(chan push), server: s}
	configv1.RegisterConfigServer(s, c)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return c
}

func (c *fakeConfigd) Watch(s configv1.Config_WatchServer) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, h := range first.GetSubscribe().GetHave() {
		have[string(h)] = true
	}
	if err := s.Send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Hello{Hello: hello.Mine("configd", "config/v1")}}); err != nil {
		return err
	}
	for {
		var p push
		select {
		case p = <-c.push:
		case <-s.Context().Done():
			return nil
		}
		prepare := &configv1.Prepare{SnapshotId: p.id}
		for _, o := range p.objects {
			prepare.Objects = append(prepare.Objects, &configv1.ObjectRef{Kind: o.GetKind(), Name: o.GetName(), Hash: o.GetHash()})
			if !have[string(o.GetHash())] {
				prepare.Changed = append(prepare.Changed, o)
				have[string(o.GetHash())] = true
			}
		}
		if err := s.Send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Prepare{Prepare: prepare}}); err != nil {
			return err
		}
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if r := m.GetRefused(); r != nil {
			p.answer <- r.GetReasons()
			continue
		}
		if err := s.Send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Commit{Commit: &configv1.Commit{SnapshotId: p.id}}}); err != nil {
			return err
		}
		if m, err = s.Recv(); err != nil {
			return err
		}
		if m.GetApplied().GetSnapshotId() != p.id {
			return fmt.Errorf("applied %v, want %s", m, p.id)
		}
		p.answer <- nil
	}
}

// apply gives the watcher a snapshot and returns its refusals.
func (c *fakeConfigd) apply(t *testing.T, objects ...*configv1.Object) []*configv1.Refusal {
	t.Helper()
	id := sha256.New()
	for _, o := range objects {
		var m proto.Message = o.GetListener()
		if o.GetRuntime() != nil {
			m = o.GetRuntime()
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		o.Hash = sum[:]
		id.Write(o.Hash)
	}
	p := push{id: fmt.Sprintf("%x", id.Sum(nil)), objects: objects, answer: make(chan []*configv1.Refusal, 1)}
	select {
	case c.push <- p:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody watches configd")
	}
	select {
	case r := <-p.answer:
		return r
	case <-time.After(20 * time.Second):
		t.Fatal("no answer to the snapshot")
		return nil
	}
}

func listener(name string, addresses ...string) *configv1.Object {
	l := &configv1.Listener{Name: name}
	for _, a := range addresses {
		l.Addresses = append(l.Addresses, &configv1.Address{Address: a})
	}
	return &configv1.Object{Kind: "listener", Name: name, Body: &configv1.Object_Listener{Listener: l}}
}

func runtime(workers uint32, probation time.Duration) *configv1.Object {
	return &configv1.Object{Kind: "runtime", Body: &configv1.Object_Runtime{Runtime: &configv1.Runtime{
		Workers: workers, ShutdownTimeMs: 60_000, ProbationMs: probation.Milliseconds(),
	}}}
}

// supervisor is what systemd and `retinue run` are to restartd: it keeps the descriptors that restartd stores and starts
// it with them again.
type supervisor struct {
	t       *testing.T
	dir     string
	notify  string
	args    []string
	mu      sync.Mutex
	store   map[string]int
	process *os.Process
}

func supervise(t *testing.T, dir string, args ...string) *supervisor {
	s := &supervisor{t: t, dir: dir, notify: filepath.Join(dir, "notify"), args: args, store: map[string]int{}}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: s.notify}); err != nil {
		t.Fatal(err)
	}
	go s.listen(fd)
	t.Cleanup(func() {
		if s.process != nil {
			_ = s.process.Signal(syscall.SIGTERM)
			_, _ = s.process.Wait()
		}
	})
	return s
}

func (s *supervisor) listen(fd int) {
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, k, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		} else if err != nil {
			return
		}
		var fds []int
		if messages, err := unix.ParseSocketControlMessage(oob[:k]); err == nil {
			for _, m := range messages {
				got, _ := unix.ParseUnixRights(&m)
				fds = append(fds, got...)
			}
		}
		s.mu.Lock()
		s.note(parse(string(buf[:n])), fds)
		s.mu.Unlock()
	}
}

func (s *supervisor) note(said map[string]string, fds []int) {
	name := said["FDNAME"]
	switch {
	case said["FDSTORE"] == "1" && len(fds) == 1:
		s.store[name] = fds[0]
		return
	case said["FDSTOREREMOVE"] == "1":
		unix.Close(s.store[name])
		delete(s.store, name)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func parse(message string) map[string]string {
	out := map[string]string{}
	for len(message) > 0 {
		var line string
		line, message, _ = cut(message, '\n')
		k, v, _ := cut(line, '=')
		out[k] = v
	}
	return out
}

func cut(s string, sep byte) (string, string, bool) {
	for i := range len(s) {
		if s[i] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func (s *supervisor) stored() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.store)
}

// start starts restartd with what it stored.
func (s *supervisor) start() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	files := []uintptr{0, 1, 2}
	names := ""
	for name, fd := range s.store {
		files = append(files, uintptr(fd))
		if names != "" {
			names += ":"
		}
		names += name
	}
	if testing.Verbose() {
		files[1] = 2
	} else {
		null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		defer unix.Close(null)
		files[1], files[2] = uintptr(null), uintptr(null)
	}
	env := append(os.Environ(), "NOTIFY_SOCKET="+s.notify)
	line := `exec "$0" "$@"`
	if len(s.store) > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(s.store)), "LISTEN_FDNAMES="+names)
		line = `LISTEN_PID=$$ exec "$0" "$@"`
	}
	args := append([]string{"sh", "-c", line, os.Args[0], "--dir", s.dir}, s.args...)
	pid, err := syscall.ForkExec("/bin/sh", args, &syscall.ProcAttr{Env: env, Files: files})
	if err != nil {
		s.t.Fatal(err)
	}
	if s.process, err = os.FindProcess(pid); err != nil {
		s.t.Fatal(err)
	}
}

// kill ends restartd as an out-of-memory killer would.
func (s *supervisor) kill() {
	s.t.Helper()
	if err := s.process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.process.Wait(); err != nil {
		s.t.Fatal(err)
	}
	s.process = nil
}

// stop ends restartd in order.
func (s *supervisor) stop() {
	s.t.Helper()
	if err := s.process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	st, err := s.process.Wait()
	s.process = nil
	if err != nil || !st.Success() {
		s.t.Errorf("restartd ended with %v %v", st, err)
	}
}

// answer is the generation that answers a connection.
func answer(c io.Reader) (string, error) {
	b, err := io.ReadAll(c)
	if err == nil && len(b) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return string(b), err
}
