package handout

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	restartv1 "retinue.dev/services/api/restart/v1"

	"retinue.dev/restartd/internal/bank"
)

// serve hands out n sockets, of which each names its own descriptor's inode.
func serve(t *testing.T, n int, name func(int) string) string {
	dir, err := os.MkdirTemp("", "handout")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "fd.sock")
	l, err := fdpass.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Log:   slog.New(slog.DiscardHandler),
		Knows: func(g uint64, pid int) bool { return g == 5 && pid == os.Getpid() },
		Sockets: func(listeners []string) ([]bank.Socket, error) {
			if len(listeners) == 1 && listeners[0] == "none" {
				return nil, errors.New(`no listener "none"`)
			}
			var out []bank.Socket
			for i := range n {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return nil, err
				}
				out = append(out, bank.Socket{FD: fd, Listener: name(i), Address: fmt.Sprint(inode(t, fd)), Shard: i, Shards: n})
			}
			return out, nil
		},
	}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func inode(t *testing.T, fd int) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}

func ask(t *testing.T, path string, request []byte) (messages int, sockets []*restartv1.Socket, fds []int, refusal string) {
	t.Helper()
	c, err := fdpass.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(request, nil); err != nil {
		t.Fatal(err)
	}
	for {
		b, got, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range got {
			t.Cleanup(func() { unix.Close(fd) })
		}
		var r restartv1.SocketsReply
		if err := proto.Unmarshal(b, &r); err != nil {
			t.Fatal(err)
		}
		if r.GetHello() == nil || len(got) != len(r.GetSockets()) {
			t.Fatalf("hello %v, %d sockets named, %d sent", r.GetHello(), len(r.GetSockets()), len(got))
		}
		messages, sockets, fds = messages+1, append(sockets, r.GetSockets()...), append(fds, got...)
		if !r.GetMore() {
			return messages, sockets, fds, r.GetError()
		}
	}
}

func request(t *testing.T, r *restartv1.SocketsRequest) []byte {
	if r.GetHello() == nil {
		r.Hello = hello.Mine("proxyd", "restart/v1")
	}
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEveryDescriptorArrivesWithItsName(t *testing.T) {
	short := func(i int) string { return fmt.Sprint(i) }
	long := func(i int) string { return strings.Repeat("n", 1000) + fmt.Sprint(i) }
	for _, c := range []struct {
		n, messages int
		name        func(int) string
	}{
		{0, 1, short},
		{1, 1, short},
		{253, 1, short},
		{254, 2, short},
		{700, 3, short},
		{100, 2, long}, // 64 KiB a message
	} {
		path := serve(t, c.n, c.name)
		messages, sockets, fds, refusal := ask(t, path, request(t, &restartv1.SocketsRequest{Generation: 5}))
		if refusal != "" || len(sockets) != c.n || messages != c.messages {
			t.Errorf("%d sockets: %d came in %d messages, want %d; %s", c.n, len(sockets), messages, c.messages, refusal)
		}
		for i, s := range sockets {
			if s.GetListener() != c.name(i) || s.GetAddress() != fmt.Sprint(inode(t, fds[i])) || int(s.GetShard()) != i || int(s.GetShards()) != c.n {
				t.Fatalf("socket %d of %d is %v with inode %d", i, c.n, s, inode(t, fds[i]))
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	path := serve(t, 2, func(int) string { return "web" })
	stranger := hello.Mine("proxyd", "restart/v1")
	stranger.Revision, stranger.MinRevision = 1000, 1000
	for _, c := range []struct {
		name    string
		request []byte
		want    string
	}{
		{"unknown generation", request(t, &restartv1.SocketsRequest{Generation: 4}), "is not generation 4"},
		{"unknown listener", request(t, &restartv1.SocketsRequest{Generation: 5, Listeners: []string{"none"}}), `no listener "none"`},
		{"no hello", mustMarshal(t, &restartv1.SocketsRequest{Generation: 5}), ""},
		{"another revision", request(t, &restartv1.SocketsRequest{Hello: stranger, Generation: 5}), "1000"},
		{"nonsense", []byte{0xff, 0xff, 0xff}, "proto"},
	} {
		_, sockets, _, refusal := ask(t, path, c.request)
		if refusal == "" || !strings.Contains(refusal, c.want) || len(sockets) != 0 {
			t.Errorf("%s: %q and %d sockets, want %q", c.name, refusal, len(sockets), c.want)
		}
	}
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
