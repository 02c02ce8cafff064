package handoff_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/fdpass"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/handoff"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/parcel"
	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/tcpproxy"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// The two sides are processes of their own, so that they can be killed: this test's binary in one of these roles.
//
//	giver PATH UPSTREAM STEP   a TCP proxy that prints its address; a line "give" makes it give all it has to PATH
//	taker PATH STEP            takes on PATH
//	echo                       an upstream that echoes
//
// At STEP a process prints "at STEP" and waits for a line before it goes on.
const roleVariable = "RETINUE_HANDOFF_ROLE"

func TestMain(m *testing.M) {
	role := strings.Fields(os.Getenv(roleVariable))
	if len(role) == 0 {
		os.Exit(m.Run())
	}
	limit := unix.Rlimit{Cur: 60_000, Max: 60_000}
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) // root may; else the test that needs many sees it
	p := &process{lines: bufio.NewReader(os.Stdin), cells: counters.NewHeap(1)}
	var err error
	switch role[0] {
	case "giver":
		p.step = handoff.Step(role[3])
		err = p.give(role[1], role[2])
	case "taker":
		p.step = handoff.Step(role[2])
		err = p.take(role[1])
	case "echo":
		err = echo()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role[0], err)
		os.Exit(1)
	}
}

// process is one side.
type process struct {
	mu     sync.Mutex
	lines  *bufio.Reader
	step   handoff.Step
	worker *worker.Worker
	filter *tcpproxy.Filter
	listen *listener.Listener
	cells  *counters.Set
}

// at stops the process at its step, once.
func (p *process) at(s handoff.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s != p.step {
		return
	}
	p.step = ""
	fmt.Println("at", s)
	_, _ = p.lines.ReadString('\n')
}

func (p *process) on(f func()) {
	done := make(chan struct{})
	p.worker.Post(func() {
		defer close(done)
		f()
	})
	<-done
}

// build makes a worker with one tcp_proxy of cluster "echo", listening on the given sockets.
func (p *process) build(upstreamAddress string, sockets []listener.Socket) error {
	poller, err := epoll.New()
	if err != nil {
		return err
	}
	if p.worker, err = worker.New(0, poller); err != nil {
		return err
	}
	ctx := context.Background()
	built, err := cluster.Build(&configv1.Cluster{
		Name: "echo", Endpoints: []*configv1.Endpoint{{Address: upstreamAddress}},
		CircuitBreaker: &configv1.CircuitBreaker{MaxConnections: 1 << 20},
	}, 0, nil)
	if err != nil {
		return err
	}
	manager := upstream.NewManager(p.worker, nil)
	manager.Update([]*upstream.Config{{Cluster: built, Cells: p.cells.Clusters(ctx, []string{"echo"})[0]}})
	p.filter = &tcpproxy.Filter{Worker: p.worker, Manager: manager, Config: &tcpproxy.Config{
		Targets: []tcpproxy.Target{{Cluster: 0, Name: "echo", Cumulative: 1}}, Attempts: 1, Cells: p.cells.TCP(ctx, []string{"tcp"})[0],
	}}
	if p.listen, err = listener.New(p.worker, "tcp", sockets, listener.NewReserve(poller, &listener.Lacking{})); err != nil {
		return err
	}
	cells := p.cells.Listeners(ctx, []string{"tcp"})[0][0]
	all := new(uint64)
	p.listen.Counters = listener.Counters{
		Total: &cells[counters.ListenerDownstreamCxTotal], Active: &cells[counters.ListenerDownstreamCxActive],
		Overflow: &cells[counters.ListenerDownstreamCxOverflow], GlobalOverflow: &cells[counters.ListenerDownstreamGlobalCxOverflow],
		Shed: &cells[counters.ListenerDownstreamCxShed], Worker: all,
	}
	p.listen.Chains = (&listener.Chains{List: []listener.Chain{{Filter: p.filter}}}).Prepare()
	ids := uint64(0)
	p.listen.NextID = func() uint64 { ids++; return ids }
	go p.worker.Run()
	return nil
}

func (p *process) give(path, upstreamAddress string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if err := p.build(upstreamAddress, []listener.Socket{{FD: int32(fd)}}); err != nil {
		return err
	}
	p.on(func() { err = p.listen.Start(listener.All) })
	if err != nil {
		return err
	}
	fmt.Println("127.0.0.1:" + strconv.Itoa(name.(*unix.SockaddrInet4).Port))
	for {
		if line, err := p.lines.ReadString('\n'); err != nil || line != "give\n" {
			return err
		}
		moved, batches, began := 0, 0, time.Now()
		g, err := handoff.Dial(path, 1)
		if err != nil {
			return err
		}
		last := false // what the batches before the last one moved is in the taker already, and what would follow them is not
		g.Probe = func(s handoff.Step) {
			if last {
				p.at(s)
			}
		}
		for {
			in := &parcel.Parcel{}
			p.on(func() {
				p.filter.Pack(in)
				last = len(in.Connections) == p.filter.Open()
			})
			if len(in.Connections) == 0 {
				break
			}
			err := g.Give(in, func(out handoff.Outcome) {
				p.on(func() {
					for i, c := range in.Parked {
						if out.Taken[i] {
							c.Release()
							moved++
						} else {
							c.Unpark(out.Accepted)
						}
					}
				})
			})
			if batches++; err != nil {
				fmt.Println("ended:", err)
				break
			}
		}
		g.Close()
		open := 0
		p.on(func() { open = p.filter.Open() })
		fmt.Printf("moved %d in %d batches, %d ms, left %d\n", moved, batches, time.Since(began).Milliseconds(), open)
	}
}

func (p *process) take(path string) error {
	if err := p.build("127.0.0.1:9", nil); err != nil { // of its own it dials nobody
		return err
	}
	l, err := fdpass.Listen(path)
	if err != nil {
		return err
	}
	t := &handoff.Taker{Generation: 2, Adopt: p.adopt, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Probe: p.at}
	fmt.Println("takes")
	t.Serve(l)
	return nil
}

func (p *process) adopt(in *parcel.Parcel) handoff.Adoption {
	var adopted []parcel.Parked
	var a handoff.Adoption
	p.on(func() {
		for i, c := range in.Connections {
			parked, err := p.filter.Adopt(in, c.GetTunnel(), p.listen, func(string) (cluster.Handle, bool) { return 0, true })
			if err != nil {
				a.Refused = append(a.Refused, refusal(i, err))
				continue
			}
			adopted = append(adopted, parked)
		}
	})
	each := func(f func(parcel.Parked)) func() {
		return func() {
			p.on(func() {
				for _, c := range adopted {
					f(c)
				}
			})
		}
	}
	a.Resume, a.Release = each(parcel.Parked.Resume), each(parcel.Parked.Release)
	return a
}

func echo() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			// Not io.Copy alone: it would splice, with two more descriptors for each connection.
			_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4<<10))
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.Close()
		}()
	}
}
