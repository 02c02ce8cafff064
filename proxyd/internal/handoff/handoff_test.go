package handoff_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/handoff"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

func refusal(i int, err error) *handoffv1.Refusal {
	return &handoffv1.Refusal{Connection: uint32(i), Reason: err.Error()}
}

// patience bounds what must happen on a busy machine.
const patience = 30 * time.Second

// side is a helper process.
type side struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t *testing.T, role ...string) *side {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &side{t: t, cmd: exec.Command(self)}
	s.cmd.Env = append(os.Environ(), roleVariable+"="+strings.Join(role, " "))
	s.cmd.Stderr = os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

func (s *side) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *side) say(line string) { _, _ = io.WriteString(s.in, line+"\n") }

// line is what the process prints next.
func (s *side) line() string {
	s.t.Helper()
	got := make(chan string, 1)
	go func() {
		l, _ := s.out.ReadString('\n')
		got <- strings.TrimSpace(l)
	}()
	select {
	case l := <-got:
		return l
	case <-time.After(patience):
		s.t.Fatal("a side says nothing")
		return ""
	}
}

// client counts: it writes the numbers from 0 on and wants them back, so that a byte that is lost, doubled or out of order shows.
type client struct {
	conn  *net.TCPConn
	slow  chan struct{} // closed: it reads
	stop  chan struct{} // closed: it sends FIN
	ended chan struct{}
	sent  uint64 // numbers, after ended of the writer
	got   uint64
	err   error
	// refused is why a write failed. The kernel tells a reset once: to the writer, if it comes first, and then the reader sees a mere end.
	refused error
}

func dial(t *testing.T, address string) *client {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	return &client{conn: c.(*net.TCPConn), slow: make(chan struct{}), stop: make(chan struct{}), ended: make(chan struct{})}
}

// run streams with writes of so many numbers until stop, then reads to the end.
func (c *client) run(numbers int) {
	var writer sync.WaitGroup
	writer.Go(func() {
		b := make([]byte, 8*numbers)
		for {
			select {
			case <-c.stop:
				_ = c.conn.CloseWrite()
				return
			default:
			}
			for i := range numbers {
				binary.BigEndian.PutUint64(b[8*i:], c.sent+uint64(i))
			}
			if _, c.refused = c.conn.Write(b); c.refused != nil {
				return
			}
			c.sent += uint64(numbers)
			if numbers == 1 {
				time.Sleep(time.Millisecond) // a client that talks, and does not stream
			}
		}
	})
	go func() {
		defer close(c.ended)
		<-c.slow
		r, b := bufio.NewReaderSize(c.conn, 64<<10), make([]byte, 8)
		for ; ; c.got++ {
			if _, err := io.ReadFull(r, b); err != nil {
				if !errors.Is(err, io.EOF) {
					c.err = err
				}
				break
			}
			if n := binary.BigEndian.Uint64(b); n != c.got {
				c.err = fmt.Errorf("number %d came in place of %d", n, c.got)
				return
			}
		}
		if c.err != nil {
			_ = c.conn.Close()
		}
		writer.Wait()
		if c.err == nil {
			c.err = c.refused
		}
		if c.err == nil && c.got != c.sent {
			c.err = fmt.Errorf("the end came after %d numbers of %d", c.got, c.sent)
		}
	}()
}

func (c *client) result(t *testing.T) error {
	t.Helper()
	select {
	case <-c.ended:
		return c.err
	case <-time.After(2 * patience):
		return errors.New("it hangs")
	}
}

type outcome int

const (
	survives outcome = iota
	dies             // with the process that had it
	either           // the process died in the instant in which it became the owner
)

// TestKilledAtEachStep kills either side at each step of a move, under clients that talk, that stream (spliced, with bytes in
// pipes, since some do not read), and that send FIN while their connection lies still. What the dead process did not own goes
// on in the other with every byte once and in order; what it did ends, and nothing that was wrong is ever read.
func TestKilledAtEachStep(t *testing.T) {
	for _, test := range []struct {
		side string
		step handoff.Step
		want outcome
	}{
		{"", "", survives},
		{"giver", handoff.Parked, dies},
		{"giver", handoff.Offered, survives},
		{"giver", handoff.Closed, survives},
		{"giver", handoff.Released, survives},
		{"taker", handoff.Registered, survives},
		{"taker", handoff.Accepted, survives},
		{"taker", handoff.Answered, either},
		{"taker", handoff.Resumed, dies},
	} {
		t.Run(test.side+"-"+string(test.step), func(t *testing.T) { killedAt(t, test.side, test.step, test.want) })
	}
}

func killedAt(t *testing.T, which string, step handoff.Step, want outcome) {
	path := filepath.Join(t.TempDir(), "s")
	upstream := start(t, "echo").line()
	steps := map[string]string{"giver": "none", "taker": "none"}
	if which != "" {
		steps[which] = string(step)
	}
	taker := start(t, "taker", path, steps["taker"])
	taker.line()
	giver := start(t, "giver", path, upstream, steps["giver"])
	address := giver.line()
	slow := func(i int) bool { return i%6 == 5 } // of those that stream
	var clients []*client
	for i := range 24 {
		c := dial(t, address)
		clients = append(clients, c)
		if !slow(i) {
			close(c.slow)
		}
		c.run([]int{1, 512, 8192}[i%3])
	}
	for _, c := range clients { // all are under way: the ones that do not read have filled every buffer
		if err := flowing(c.conn); err != nil {
			t.Fatal(err)
		}
	}
	giver.say("give")
	if which != "" {
		stopped := map[string]*side{"giver": giver, "taker": taker}[which]
		if got := stopped.line(); got != "at "+string(step) {
			t.Fatalf("%q instead of the step", got)
		}
		for i, c := range clients {
			if i%4 == 0 {
				close(c.stop) // a FIN while the connection lies still
			}
		}
		stopped.kill()
	} else if got := giver.line(); !strings.HasPrefix(got, "moved 24 ") || !strings.HasSuffix(got, " left 0") {
		t.Fatalf("%q", got)
	}
	for i, c := range clients {
		if slow(i) {
			close(c.slow)
		}
		if which == "" || i%4 != 0 {
			close(c.stop)
		}
	}
	failed := 0
	for i, c := range clients {
		err := c.result(t)
		if err == nil {
			continue
		}
		failed++
		if want == survives || strings.Contains(err.Error(), "in place of") || strings.Contains(err.Error(), "hangs") {
			t.Errorf("client %d: %v", i, err)
		}
	}
	if want == dies && failed == 0 {
		t.Error("no client noticed the death of the process that had its connection: the test kills the wrong one")
	}
}

// flowing waits until bytes have come back.
func flowing(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var acked uint64
		err := raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO); err == nil {
				acked = info.Bytes_received
			}
		})
		if err != nil || acked > 0 {
			return err
		}
	}
	return errors.New("nothing came back")
}

// TestTenThousandConnections moves them in batches of what a message carries, and each still works afterwards.
func TestTenThousandConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("many descriptors")
	}
	n := 10_000
	limit := unix.Rlimit{Cur: 60_000, Max: 60_000}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		n = min(n, int(limit.Cur)/2-300)
		t.Logf("the limit of descriptors allows %d connections", n)
	}
	path := filepath.Join(t.TempDir(), "s")
	upstream := start(t, "echo").line()
	start(t, "taker", path, "none").line()
	giver := start(t, "giver", path, upstream, "none")
	address := giver.line()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, address).conn
	}
	ping := func(c net.Conn) error {
		message, back := make([]byte, 8), make([]byte, 8)
		binary.BigEndian.PutUint64(message, rand.Uint64())
		if _, err := c.Write(message); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, back); err != nil {
			return err
		}
		if string(back) != string(message) {
			return fmt.Errorf("%x came back for %x", back, message)
		}
		return nil
	}
	for i, c := range conns {
		if err := ping(c); err != nil {
			t.Fatalf("connection %d before the move: %v", i, err)
		}
	}
	giver.say("give")
	said := giver.line()
	t.Log(said)
	if want := fmt.Sprintf("moved %d in ", n); !strings.HasPrefix(said, want) || !strings.HasSuffix(said, " left 0") {
		t.Fatalf("%q", said)
	}
	giver.kill()
	for i, c := range conns {
		if err := ping(c); err != nil {
			t.Fatalf("connection %d after the move: %v", i, err)
		}
	}
}
