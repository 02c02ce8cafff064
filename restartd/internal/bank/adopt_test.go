package bank

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAdoptionRefusesWhatIsNoListener(t *testing.T) {
	s := newShelf(t)
	first := newBench(t, s)
	first.apply(t, 2, web("127.0.0.1:0"))
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[1])
	datagram, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	idle, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := parse("127.0.0.1:0")
	foreign, err := listenTCP(p, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	ours := s.inherit()
	k, _, _ := splitStoreName(ours[0].Name)
	bad := []Inherited{
		{"socket/a/0", pipe[0]},
		{"socket/b/0", datagram},
		{"web", idle},
		{storeName(k, 7), foreign}, // a shard of ours that is bound elsewhere
	}
	for _, f := range bad {
		if strings.HasPrefix(f.Name, storePrefix) {
			if err := s.StoreFD(f.Name, f.FD); err != nil {
				t.Fatal(err)
			}
		}
	}
	second := newBench(t, s)
	if n := second.Adopt(append(ours, bad...)); n != 2 {
		t.Errorf("adopted %d, want 2", n)
	}
	if len(s.fds) != 2 {
		t.Errorf("%d left in the store, want ours alone", len(s.fds))
	}
	for _, f := range bad {
		if _, err := unix.FcntlInt(uintptr(f.FD), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("%s is still open: %v", f.Name, err)
		}
	}
}

func TestAdoptedSocketsThatNobodyWantsAreClosed(t *testing.T) {
	s := newShelf(t)
	first := newBench(t, s)
	first.apply(t, 2, web("127.0.0.1:0", "127.0.0.2:0"))
	kept := first.Listeners()[0].Addresses[0]
	second := newBench(t, s)
	second.Adopt(s.inherit())
	second.apply(t, 2, web("127.0.0.1:0"))
	if got := second.Listeners()[0].Addresses[0]; got != kept {
		t.Errorf("adopted %s, want %s", got, kept)
	}
	second.burn()
	if len(s.fds) != 2 {
		t.Errorf("%d left in the store, want the 2 shards that are configured", len(s.fds))
	}
}

func TestSocketActivation(t *testing.T) {
	p, _ := parse("127.0.0.1:0")
	fd, err := listenTCP(p, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	bound, _ := boundTo(fd)
	other, err := listenTCP(p, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	unwanted, _ := boundTo(other)
	s := newShelf(t)
	b := newBench(t, s)
	if n := b.Adopt([]Inherited{{"web", fd}, {"web", other}}); n != 2 {
		t.Fatalf("adopted %d", n)
	}
	b.apply(t, 4, web(bound.String()))
	all := b.sockets(t, "web")
	if len(all) != 1 || !all[0].Shared || all[0].Bound != bound.String() {
		t.Fatalf("sockets %+v", all)
	}
	if len(s.fds) != 0 {
		t.Errorf("the supervisor's own socket was stored: %v", s.fds)
	}
	if _, err := net.Dial("tcp", unwanted.String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a socket that no listener names stayed open: %v", err)
	}
	b.Grow()
	if n := len(b.sockets(t)); n != 1 {
		t.Errorf("%d sockets after Grow, want 1", n)
	}
}

// The child of TestRestart: a second restartd, in a process of its own, with the descriptors that the first one stored.
func TestMain(m *testing.M) {
	if os.Getenv("BANK_CHILD") == "" {
		os.Exit(m.Run())
	}
	var files []Inherited
	for i, name := range strings.Split(os.Getenv("BANK_CHILD"), ":") {
		files = append(files, Inherited{name, 3 + i})
	}
	fail := func(format string, a ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", a...)
		os.Exit(1)
	}
	f := &fuse{}
	b := New(Options{Store: nullStore{}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Grace: time.Second, After: f.after})
	if n := b.Adopt(files); n != len(files) {
		fail("adopted %d of %d", n, len(files))
	}
	if r := b.Prepare([]Listener{web(strings.Split(os.Getenv("BANK_ADDRESSES"), " ")...)}, 3); r != nil {
		fail("refused: %v", r)
	}
	b.Commit()
	all, err := b.Sockets(nil)
	if err != nil {
		fail("%v", err)
	}
	for _, s := range all {
		if flags, _ := unix.FcntlInt(uintptr(s.FD), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
			fail("%s blocks", s.Bound)
		}
		for {
			c, _, err := unix.Accept4(s.FD, unix.SOCK_CLOEXEC)
			if err == unix.EAGAIN {
				break
			} else if err != nil {
				fail("accept: %v", err)
			}
			unix.Write(c, []byte(s.Bound))
			unix.Close(c)
		}
	}
	os.Exit(0)
}

type nullStore struct{}

func (nullStore) StoreFD(name string, _ int) error { return fmt.Errorf("bound %s anew", name) }
func (nullStore) RemoveFD(name string) error       { return fmt.Errorf("removed %s", name) }

// Connections that wait in the queues of every shard while restartd is replaced are answered by the next one.
func TestRestart(t *testing.T) {
	s := newShelf(t)
	first := newBench(t, s)
	addresses := []string{"127.0.0.1:0", "unix:" + t.TempDir() + "/s"}
	first.apply(t, 3, web(addresses...))
	bound := first.Listeners()[0].Addresses

	const each = 20
	var clients []net.Conn
	for i := range 2 * each {
		network, address := "tcp", bound[0]
		if i%2 == 1 {
			network, address = "unix", strings.TrimPrefix(bound[1], "unix:")
		}
		c, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	for _, g := range first.groups { // killed: nothing is taken out of the store
		for _, sh := range g.shards {
			unix.Close(sh.fd)
		}
		g.shards = nil
		// The flag is the open file's, so a careless holder clears it for everybody.
		for _, fd := range s.fds {
			if err := unix.SetNonblock(fd, false); err != nil {
				t.Fatal(err)
			}
		}
	}

	files := []uintptr{0, 1, 2}
	var names []string
	for name, fd := range s.fds {
		names = append(names, name)
		files = append(files, uintptr(fd))
	}
	// Not by os/exec: an os.File's Fd() is what makes sockets blocking.
	pid, err := syscall.ForkExec(os.Args[0], os.Args[:1], &syscall.ProcAttr{
		Env:   []string{"BANK_CHILD=" + strings.Join(names, ":"), "BANK_ADDRESSES=" + strings.Join(addresses, " ")},
		Files: files,
	})
	if err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Fatalf("the second restartd: exit %d %v", status.ExitStatus(), err)
	}
	for i, c := range clients {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		answer, err := io.ReadAll(c)
		if err != nil || string(answer) != bound[i%2] {
			t.Errorf("client %d: %q %v", i, answer, err)
		}
	}
}
