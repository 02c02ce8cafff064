package sdnotify

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/unixsocket"
)

// supervisor receives notifications.
func supervisor(t *testing.T) (receive func() (string, int)) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	name := "@sdnotify-test-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", name)
	return func() (string, int) {
		buf, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
		n, c, _, _, err := unix.Recvmsg(fd, buf, control, 0)
		if err != nil {
			t.Fatal(err)
		}
		passed := -1
		if parts, err := unix.ParseSocketControlMessage(control[:c]); err == nil && len(parts) == 1 {
			fds, err := unix.ParseUnixRights(&parts[0])
			if err != nil || len(fds) != 1 {
				t.Fatal(fds, err)
			}
			passed = fds[0]
		}
		return string(buf[:n]), passed
	}
}

func TestMessages(t *testing.T) {
	receive := supervisor(t)
	n := New()
	if _, set := os.LookupEnv("NOTIFY_SOCKET"); set {
		t.Error("NOTIFY_SOCKET is left for children")
	}
	for want, send := range map[string]func() error{
		"READY=1\nSTATUS=two lines":    func() error { return n.Ready("two\nlines") },
		"STATUS=warming":               func() error { return n.Status("warming") },
		"STOPPING=1":                   n.Stopping,
		"WATCHDOG=1":                   n.Watchdog,
		"EXTEND_TIMEOUT_USEC=1500000":  func() error { return n.ExtendTimeout(1500 * time.Millisecond) },
		"FDSTOREREMOVE=1\nFDNAME=bank": func() error { return n.RemoveFD("bank") },
	} {
		if err := send(); err != nil {
			t.Fatal(err)
		}
		if got, _ := receive(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if err := n.Reloading(); err != nil {
		t.Fatal(err)
	}
	if got, _ := receive(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("got %q", got)
	}
}

func TestStoreSendsTheDescriptor(t *testing.T) {
	receive := supervisor(t)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	if err := New().StoreFD("end", p[1]); err != nil {
		t.Fatal(err)
	}
	unix.Close(p[1])
	message, fd := receive()
	if message != "FDSTORE=1\nFDNAME=end" || fd < 0 {
		t.Fatalf("%q with descriptor %d", message, fd)
	}
	defer unix.Close(fd)
	unix.Write(fd, []byte("x"))
	var b [1]byte
	if n, err := unix.Read(p[0], b[:]); n != 1 || b[0] != 'x' {
		t.Errorf("the stored descriptor is another one: %v", err)
	}
}

func TestNamesAreSystemdsOwn(t *testing.T) {
	supervisor(t)
	n := New()
	for _, name := range []string{"", "a:b", "a b", "a\nFDSTORE=1", "é", strings.Repeat("x", 256)} {
		if err := n.StoreFD(name, 0); err == nil {
			t.Errorf("the name %q was sent", name)
		}
	}
}

func TestWithoutSupervisorNothingHappens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := New().Ready("ready"); err != nil {
		t.Error(err)
	}
}

func TestInheritedIsForThisProcessOnly(t *testing.T) {
	for _, test := range []struct{ pid, fds string }{
		{strconv.Itoa(os.Getpid() + 1), "1"}, {"", "1"}, {strconv.Itoa(os.Getpid()), "-1"}, {strconv.Itoa(os.Getpid()), "many"},
	} {
		t.Setenv("LISTEN_PID", test.pid)
		t.Setenv("LISTEN_FDS", test.fds)
		if got := Inherited(); len(got) != 0 {
			t.Errorf("pid %q, fds %q: inherited %v", test.pid, test.fds, got)
		}
		if _, set := os.LookupEnv("LISTEN_FDS"); set {
			t.Error("LISTEN_FDS is left for children")
		}
	}
}

func TestWatchdogInterval(t *testing.T) {
	own := strconv.Itoa(os.Getpid())
	for _, test := range []struct {
		us, pid string
		want    time.Duration
	}{
		{"1500000", own, 1500 * time.Millisecond},
		{"1500000", "", 1500 * time.Millisecond},
		{"1500000", "1", 0}, // meant for the parent
		{"", own, 0},
		{"-1", own, 0},
		{"soon", own, 0},
	} {
		t.Setenv("WATCHDOG_USEC", test.us)
		t.Setenv("WATCHDOG_PID", test.pid)
		if got := WatchdogInterval(); got != test.want {
			t.Errorf("usec %q, pid %q: %v, want %v", test.us, test.pid, got, test.want)
		}
	}
}

// TestSupervisorThatStandsStill fills the supervisor's queue: the daemon gets an error, not a wait without end.
func TestSupervisorThatStandsStill(t *testing.T) {
	supervisor(t)
	n := New()
	for range 1 << 20 {
		if err := n.Watchdog(); errors.Is(err, unix.EAGAIN) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("the queue never fills")
}

// TestLongAddress listens where a socket address cannot reach.
func TestLongAddress(t *testing.T) {
	dir := t.TempDir()
	for len(dir) < 150 {
		dir = filepath.Join(dir, strings.Repeat("d", 40))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	path := filepath.Join(dir, "notify")
	if err := unixsocket.At(path, func(short string) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: short}) }); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	if err := New().Ready("here"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if got, _, err := unix.Recvfrom(fd, buf, 0); err != nil || string(buf[:got]) != "READY=1\nSTATUS=here" {
		t.Errorf("%q, %v", buf[:max(got, 0)], err)
	}
}
