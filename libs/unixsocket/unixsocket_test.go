package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var networks = []string{"unix", "unixpacket"}

func dial(t *testing.T, network, path string) error {
	t.Helper()
	c, err := Dial(context.Background(), network, path)
	if err == nil {
		c.Close()
	}
	return err
}

func TestListenReplacesADeadSocketOnly(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.sock")
			first, err := Listen(network, path, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Listen(network, path, 0o600); err == nil || !strings.Contains(err.Error(), "another process listens there") {
				t.Errorf("a live socket: %v", err)
			}
			if err := dial(t, network, path); err != nil {
				t.Errorf("the refused newcomer harmed the live socket: %v", err)
			}
			if err := os.Link(path, path+".held"); err != nil { // an inode number is not used again while its file is there
				t.Fatal(err)
			}
			first.UnixListener.Close() // leaves the name, as a killed process does
			second, err := Listen(network, path, 0o600)
			if err != nil {
				t.Fatalf("a dead socket: %v", err)
			}
			first.Close() // the late end of the first must not take the second's name
			if err := dial(t, network, path); err != nil {
				t.Errorf("after the predecessor's close: %v", err)
			}
			if err := second.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("Close left the name: %v", err)
			}
		})
	}
}

// TestListenRefusesABusySocket fills the queue of a listener that does not accept: it lives, though nobody can connect.
func TestListenRefusesABusySocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		if err := unix.Connect(c, &unix.SockaddrUnix{Name: path}); err == unix.EAGAIN {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Listen("unix", path, 0o600); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a busy socket: %v", err)
	}
}

func TestListenKeepsOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix", path, 0o600); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("got %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "precious" {
		t.Errorf("the file holds %q now", got)
	}
}

func TestMode(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen("unix", path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v; want 0660 whatever the umask", st.Mode(), err)
	}
}

func TestLongPath(t *testing.T) {
	dir := t.TempDir()
	for len(dir) < 200 {
		dir = filepath.Join(dir, strings.Repeat("d", 40))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "daemon.sock")
	for _, network := range networks {
		l, err := Listen(network, path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if l.Addr().String() != path {
			t.Errorf("address %q", l.Addr())
		}
		if err := dial(t, network, path); err != nil {
			t.Error(err)
		}
		if _, err := Listen(network, path, 0o600); err == nil {
			t.Error("a live socket was taken over")
		}
		l.Close()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Close left the name: %v", err)
		}
	}
	if _, err := Listen("unix", filepath.Join(dir, strings.Repeat("x", 120)), 0o600); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a file name too long for any trick: %v", err)
	}
}

// TestStartTogether lets many listeners race for one stale name: exactly one gets it, and it answers.
func TestStartTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	stale, err := Listen("unix", path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	stale.UnixListener.Close()
	var all sync.WaitGroup
	won := make(chan net.Listener, 16)
	for range cap(won) {
		all.Go(func() {
			if l, err := Listen("unix", path, 0o600); err == nil {
				won <- l
			}
		})
	}
	all.Wait()
	if len(won) != 1 {
		t.Fatalf("%d listeners have the name", len(won))
	}
	defer (<-won).Close()
	if err := dial(t, "unix", path); err != nil {
		t.Error(err)
	}
}

func TestDialSaysWhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nobody.sock")
	if err := dial(t, "unix", path); !errors.Is(err, unix.ENOENT) || err.Error() != fmt.Sprintf("connect to %s: connect: no such file or directory", path) {
		t.Errorf("%v", err)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	live, err := Listen("unix", filepath.Join(dir, "a-1.sock"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	dead, err := Listen("unix", filepath.Join(dir, "a-2.sock"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	dead.UnixListener.Close() // as a killed process does: the name stays
	if err := os.WriteFile(filepath.Join(dir, "a-3.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	Sweep("unix", filepath.Join(dir, "a-*.sock"))
	for name, want := range map[string]bool{"a-1.sock": true, "a-2.sock": false, "a-3.sock": true} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
