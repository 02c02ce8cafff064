package fdpass

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func connect(t *testing.T, path string) (client, server *Conn) {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted := make(chan *Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			accepted <- c
		}
	}()
	if client, err = Dial(path); err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return client, server
}

// pipes makes n read ends of pipes with the number of the pipe inside.
func pipes(t *testing.T, n int) []int {
	t.Helper()
	var fds []int
	for i := range n {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		unix.Write(p[1], []byte{byte(i)})
		unix.Close(p[1])
		fds = append(fds, p[0])
		t.Cleanup(func() { unix.Close(p[0]) })
	}
	return fds
}

func TestDescriptorsArriveInOrder(t *testing.T) {
	for _, n := range []int{0, 1, MaxFDs} {
		client, server := connect(t, filepath.Join(t.TempDir(), "s"))
		if err := client.Send([]byte("here"), pipes(t, n)); err != nil {
			t.Fatalf("%d descriptors: %v", n, err)
		}
		message, got, err := server.Recv()
		if err != nil || string(message) != "here" || len(got) != n {
			t.Fatalf("sent %d: got %q with %d, %v", n, message, len(got), err)
		}
		for i, fd := range got {
			var b [1]byte
			if k, err := unix.Read(fd, b[:]); k != 1 || b[0] != byte(i) {
				t.Errorf("descriptor %d is another: %v, %v", i, b, err)
			}
			if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor %d survives an exec", i)
			}
			if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
				t.Errorf("descriptor %d lost O_NONBLOCK on the way", i)
			}
			unix.Close(fd)
		}
	}
}

func TestSendRefuses(t *testing.T) {
	client, _ := connect(t, filepath.Join(t.TempDir(), "s"))
	if err := client.Send([]byte("x"), make([]int, MaxFDs+1)); err == nil || !strings.Contains(err.Error(), "send several") {
		t.Errorf("%d descriptors: %v", MaxFDs+1, err)
	}
	if err := client.Send(nil, nil); err == nil {
		t.Error("an empty message looks like the end of the connection and was sent")
	}
	if err := client.Send(make([]byte, MaxMessage+1), nil); err == nil {
		t.Error("a message above the limit was sent")
	}
}

func TestLongPath(t *testing.T) {
	dir := t.TempDir()
	for len(dir) < 150 {
		dir = filepath.Join(dir, strings.Repeat("d", 40))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	client, server := connect(t, filepath.Join(dir, "socket"))
	if err := client.Send([]byte("far"), nil); err != nil {
		t.Fatal(err)
	}
	if message, _, err := server.Recv(); string(message) != "far" {
		t.Errorf("%q, %v", message, err)
	}
}

// TestFlagsOfPassedSocketsStay passes a listening socket in both modes: neither copy's O_NONBLOCK changes, on either side.
func TestFlagsOfPassedSocketsStay(t *testing.T) {
	for _, nonblock := range []int{0, unix.SOCK_NONBLOCK} {
		client, server := connect(t, filepath.Join(t.TempDir(), "s"))
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|nonblock, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := client.Send([]byte("socket"), []int{fd}); err != nil {
			t.Fatal(err)
		}
		_, got, err := server.Recv()
		if err != nil || len(got) != 1 {
			t.Fatal(got, err)
		}
		defer unix.Close(got[0])
		for _, f := range []int{fd, got[0]} {
			if flags, err := unix.FcntlInt(uintptr(f), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != nonblock {
				t.Errorf("flags %o, want O_NONBLOCK %o; %v", flags, nonblock, err)
			}
		}
	}
}

func TestCloseWakesTheWaiting(t *testing.T) {
	_, server := connect(t, filepath.Join(t.TempDir(), "s"))
	ended := make(chan error, 1)
	go func() {
		_, _, err := server.Recv()
		ended <- err
	}()
	server.Close()
	if err := <-ended; err == nil || errors.Is(err, unix.EBADF) {
		t.Errorf("Recv after Close: %v", err)
	}
	l, err := Listen(filepath.Join(t.TempDir(), "l"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	l.Close()
	l.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

func TestDeadline(t *testing.T) {
	client, _ := connect(t, filepath.Join(t.TempDir(), "s"))
	if err := client.SetDeadline(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for range 2 { // each call anew
		if _, _, err := client.Recv(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a peer that says nothing: %v", err)
		}
	}
	for { // a peer that reads nothing
		if err := client.Send(make([]byte, MaxMessage), nil); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestEndAndPeer(t *testing.T) {
	client, server := connect(t, filepath.Join(t.TempDir(), "s"))
	cred, err := server.Peer()
	if err != nil || int(cred.Pid) != unix.Getpid() || int(cred.Uid) != unix.Getuid() {
		t.Errorf("peer %+v, %v", cred, err)
	}
	client.Close()
	if _, _, err := server.Recv(); err != io.EOF {
		t.Errorf("after the peer's end: %v, want EOF", err)
	}
}
