package handoff

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/proxyd/internal/parcel"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// Giver is one conversation with a taker. It belongs to one goroutine.
type Giver struct {
	// Probe is for tests.
	Probe Probe

	conn  *fdpass.Conn
	page  *page
	batch uint64
}

// Dial opens a conversation with the taker that listens at path.
func Dial(path string, generation uint64) (*Giver, error) {
	c, err := fdpass.Dial(path)
	if err != nil {
		return nil, err
	}
	g := &Giver{conn: c}
	if err := g.greet(generation); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

func (g *Giver) greet(generation uint64) error {
	if err := g.conn.SetDeadline(patience); err != nil {
		return err
	}
	var err error
	if g.page, err = newPage(); err != nil {
		return err
	}
	if err := sayHello(g.conn, generation, []int{g.page.fd}); err != nil {
		return err
	}
	m, fds, err := receive(g.conn)
	if err != nil {
		return err
	}
	closeAll(fds)
	return hello.Check(hello.Mine("proxyd", contract), m.GetHello())
}

// Close ends the conversation, between two batches.
func (g *Giver) Close() {
	_ = g.conn.Close()
	if g.page != nil {
		g.page.close()
	}
}

// Outcome is what became of a batch: beside the parcel's connections, which the taker has. The others are the giver's as before.
type Outcome struct {
	Taken []bool
	// Accepted tells that the taker has decided: what it does not have it does not want.
	Accepted bool
	Reasons  []string
}

// Gone tells that the taker has ended the conversation.
func (g *Giver) Gone() bool { return g.conn.Gone() }

// Give offers a parcel whose connections are parked. settle is called exactly once, with what became of each: it releases what
// was taken and unparks the rest before it returns. An error tells that the conversation is over.
func (g *Giver) Give(p *parcel.Parcel, settle func(Outcome)) error {
	g.batch++
	out := Outcome{Taken: make([]bool, len(p.Connections))}
	g.Probe.at(Parked)
	g.page.offer(g.batch)
	reasons, err := g.offer(p)
	if g.page.decide(g.batch, withdrawn) {
		if err == nil {
			err = errUnexpected // an answer to what was not accepted
		}
		settle(out)
		return err
	}
	if err != nil && gone(err) { // it had accepted and is dead: it has touched nothing
		settle(out)
		return err
	}
	for i := range out.Taken {
		out.Taken[i] = !g.page.refused(i)
	}
	out.Accepted, out.Reasons = true, reasons
	settle(out)
	g.Probe.at(Closed)
	released := &handoffv1.Message{Message: &handoffv1.Message_Released{Released: &handoffv1.Released{Batch: g.batch}}}
	if failed := send(g.conn, released, nil); failed != nil {
		return failed // the end of the conversation says it too
	}
	g.Probe.at(Released)
	return err
}

// offer sends the parcel and waits for the answer; the page has the last word on it.
func (g *Giver) offer(p *parcel.Parcel) (reasons []string, err error) {
	b, err := proto.Marshal(&handoffv1.Batch{Connections: p.Connections})
	if err != nil {
		return nil, err
	}
	fds := make([]int, len(p.FDs))
	for i, fd := range p.FDs {
		fds[i] = int(fd)
	}
	for more := true; more; {
		n := min(len(b), pieceSize)
		more = n < len(b)
		m := &handoffv1.Message{Message: &handoffv1.Message_Offer{Offer: &handoffv1.Offer{Batch: g.batch, Piece: b[:n], More: more}}}
		if err := send(g.conn, m, fds); err != nil {
			return nil, err
		}
		b, fds = b[n:], nil
	}
	g.Probe.at(Offered)
	m, got, err := receive(g.conn)
	if err != nil {
		return nil, err
	}
	closeAll(got)
	if m.GetAnswer() == nil || m.GetAnswer().GetBatch() != g.batch {
		return nil, errUnexpected
	}
	for _, r := range m.GetAnswer().GetRefused() {
		reasons = append(reasons, r.GetReason())
	}
	if g.conn.Gone() {
		return nil, io.EOF
	}
	return reasons, nil
}

// gone tells that an error means the other end's death, and not only its silence.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}
