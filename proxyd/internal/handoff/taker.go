package handoff

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/proxyd/internal/parcel"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// maxGivers bounds the conversations at a time: a giver has one for each worker.
const maxGivers = 256

// Adoption is a batch that lies registered and still. One of Resume and Release is called, once.
type Adoption struct {
	Refused []*handoffv1.Refusal
	Resume  func()
	Release func()
}

// Taker answers givers.
type Taker struct {
	Generation uint64
	// Adopt registers the parcel's connections on a worker; descriptors that it leaves in the parcel are closed afterwards.
	Adopt func(*parcel.Parcel) Adoption
	Log   *slog.Logger
	// Probe is for tests.
	Probe Probe

	mu    sync.Mutex
	conns map[*fdpass.Conn]struct{}
	shut  bool
	all   sync.WaitGroup
}

// Serve answers until l is closed. Conversations go on then: Wait.
func (t *Taker) Serve(l *fdpass.Listener) {
	room := make(chan struct{}, maxGivers)
	for {
		room <- struct{}{}
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !t.enter(c) {
			_ = c.Close()
			return
		}
		go func() {
			defer func() { <-room }()
			defer t.leave(c)
			if err := t.converse(c); err != nil {
				t.Log.Warn("a generation's connections were not taken", "error", err)
			}
		}()
	}
}

func (t *Taker) enter(c *fdpass.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return false
	}
	if t.conns == nil {
		t.conns = map[*fdpass.Conn]struct{}{}
	}
	t.conns[c] = struct{}{}
	t.all.Add(1)
	return true
}

func (t *Taker) leave(c *fdpass.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
	_ = c.Close()
	t.all.Done()
}

// converse is one giver's conversation.
func (t *Taker) converse(c *fdpass.Conn) error {
	cred, err := c.Peer()
	if err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Getuid() {
		return fmt.Errorf("uid %d may not give connections to uid %d", cred.Uid, os.Getuid())
	}
	if err := c.SetDeadline(patience); err != nil {
		return err
	}
	p, from, err := t.greet(c)
	if err != nil {
		return err
	}
	defer p.close()
	if err := c.SetDeadline(0); err != nil {
		return err
	}
	for {
		in, batch, err := collect(c)
		if err != nil {
			if gone(err) {
				return nil
			}
			return fmt.Errorf("generation %d: %w", from, err)
		}
		if err := t.take(c, p, in, batch); err != nil {
			return fmt.Errorf("generation %d: %w", from, err)
		}
	}
}

func (t *Taker) greet(c *fdpass.Conn) (*page, uint64, error) {
	m, fds, err := receive(c)
	if err != nil {
		return nil, 0, err
	}
	defer closeAll(fds)
	if err := sayHello(c, t.Generation, nil); err != nil {
		return nil, 0, err
	}
	if err := hello.Check(hello.Mine("proxyd", contract), m.GetHello()); err != nil {
		return nil, 0, err
	}
	if len(fds) != 1 {
		return nil, 0, fmt.Errorf("a hello with %d descriptors instead of the page alone", len(fds))
	}
	p, err := mapPage(fds[0])
	return p, m.GetHello().GetGeneration(), err
}

// collect waits for a batch and reads it whole.
func collect(c *fdpass.Conn) (in *parcel.Parcel, batch uint64, err error) {
	in = &parcel.Parcel{}
	defer func() {
		if err != nil {
			discard(in)
		}
	}()
	var b []byte
	for first := true; ; first = false {
		m, fds, err := receive(c)
		if err != nil {
			return in, 0, err
		}
		for _, fd := range fds {
			in.FDs = append(in.FDs, int32(fd))
		}
		offer := m.GetOffer()
		switch {
		case offer == nil, !first && (len(fds) > 0 || offer.GetBatch() != batch):
			return in, 0, errUnexpected
		case len(b)+len(offer.GetPiece()) > maxBatch:
			return in, 0, errors.New("a batch without end")
		}
		batch = offer.GetBatch()
		b = append(b, offer.GetPiece()...)
		if !offer.GetMore() {
			break
		}
	}
	var list handoffv1.Batch
	if err := proto.Unmarshal(b, &list); err != nil {
		return in, 0, err
	}
	if len(list.GetConnections()) > maxConnections {
		return in, 0, fmt.Errorf("a batch of %d connections", len(list.GetConnections()))
	}
	in.Connections = list.GetConnections()
	return in, batch, nonBlocking(in.FDs)
}

// nonBlocking refuses a descriptor that would stop a worker.
func nonBlocking(fds []int32) error {
	for _, fd := range fds {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return err
		}
		if flags&unix.O_NONBLOCK == 0 {
			return errors.New("a descriptor is blocking: somebody cleared O_NONBLOCK on it")
		}
	}
	return nil
}

func discard(in *parcel.Parcel) {
	for i, fd := range in.FDs {
		if fd >= 0 {
			_ = unix.Close(int(fd))
			in.FDs[i] = -1
		}
	}
}

// take is steps 3 to 5 for one batch.
func (t *Taker) take(c *fdpass.Conn, p *page, in *parcel.Parcel, batch uint64) error {
	a := t.Adopt(in)
	discard(in)
	t.Probe.at(Registered)
	for _, r := range a.Refused {
		p.refuse(int(r.GetConnection()))
	}
	if !p.decide(batch, accepted) {
		a.Release()
		return fmt.Errorf("batch %d was taken back before it was accepted", batch)
	}
	t.Probe.at(Accepted)
	answer := &handoffv1.Message{Message: &handoffv1.Message_Answer{Answer: &handoffv1.Answer{Batch: batch, Refused: a.Refused}}}
	failed := send(c, answer, nil)
	t.Probe.at(Answered)
	// From here on nothing but the giver's word or its death ends the wait.
	for {
		m, fds, err := receive(c)
		closeAll(fds)
		if err != nil && !gone(err) {
			failed = err
			continue
		}
		if err != nil || m.GetReleased().GetBatch() == batch {
			a.Resume()
			t.Probe.at(Resumed)
			return failed
		}
	}
}
