package peer

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	suitev1 "retinue.dev/services/api/suite/v1"
)

type echo struct {
	suitev1.UnimplementedSuiteServer
	seen chan Cred
}

func (e *echo) Exchange(ctx context.Context, in *suitev1.Hello) (*suitev1.Hello, error) {
	cred, _ := FromContext(ctx)
	e.seen <- cred
	return in, nil
}

func serve(t *testing.T, path string, policy Policy) (*echo, suitev1.SuiteClient) {
	t.Helper()
	l, err := Listen(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{seen: make(chan Cred, 1)}
	server := grpc.NewServer(ServerOptions(policy)...)
	suitev1.RegisterSuiteServer(server, e)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return e, suitev1.NewSuiteClient(conn)
}

func TestServerKnowsItsPeer(t *testing.T) {
	dir := t.TempDir()
	for len(dir) < 120 { // longer than a socket address
		dir = filepath.Join(dir, strings.Repeat("d", 30))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	e, client := serve(t, filepath.Join(dir, "daemon.sock"), Same())
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := client.Exchange(ctx, &suitev1.Hello{}); err != nil {
		t.Fatal(err)
	}
	if got := <-e.seen; int(got.PID) != os.Getpid() || int(got.UID) != os.Getuid() {
		t.Errorf("peer %+v, want this process", got)
	}
}

func TestPolicyRefuses(t *testing.T) {
	_, client := serve(t, filepath.Join(t.TempDir(), "s.sock"), func(method string, _ Cred) error {
		return status.Errorf(codes.PermissionDenied, "not %s", method)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := client.Exchange(ctx, &suitev1.Hello{})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "/retinue.suite.v1.Suite/Exchange") {
		t.Errorf("got %v", err)
	}
}

func TestSame(t *testing.T) {
	const own, group, stranger = 1000, 700, 65534
	for _, test := range []struct {
		name    string
		cred    Cred
		grouped bool
		want    codes.Code
	}{
		{"root", Cred{}, false, codes.OK},
		{"own user", Cred{UID: own, GID: stranger}, false, codes.OK},
		{"stranger", Cred{UID: stranger, GID: stranger}, true, codes.PermissionDenied},
		{"primary group", Cred{UID: stranger, GID: group}, true, codes.OK},
		{"supplementary group", Cred{UID: stranger, GID: stranger, Groups: []uint32{1, group}}, true, codes.OK},
		{"root's group, no group of the suite", Cred{UID: stranger, GID: 0}, false, codes.PermissionDenied},
	} {
		if got := status.Code(same(own, group, test.grouped)("m", test.cred)); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestGroupsAreTheKernels compares SO_PEERGROUPS over a socket pair with what the process knows of itself.
func TestGroupsAreTheKernels(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	want, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	got := groups(pair[0])
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for _, id := range got {
		if !slices.Contains(want, int(id)) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}
