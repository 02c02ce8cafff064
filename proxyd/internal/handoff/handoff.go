// Package handoff moves parcels of live connections between two generations: handoff/v1 over a Unix socket. It is on the main
// side; what is packed and unpacked is the workers' business, reached through Giver's and Taker's callers.
//
// Who has a connection is never in doubt, whichever process is killed when: see services/api/handoff/v1, which has the five
// steps, and docs/hot-restart.md, which goes through every death.
package handoff

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

const (
	contract = "handoff/v1"
	// patience is how long a giver waits for an answer before it takes its offer back, and how long either waits for
	// the hello.
	patience = 3 * time.Second
	// maxBatch bounds what a taker collects of one batch, in bytes: a full parcel and one connection with all its buffers full.
	maxBatch = 64 << 20
	// pieceSize is the bytes of a batch in one message.
	pieceSize = 60 << 10
)

// Step is one of the five of handoff/v1, for tests that end a process there.
type Step string

// The steps, as each side reaches them.
const (
	Parked     Step = "parked"     // giver: off the poller, nothing sent
	Offered    Step = "offered"    // giver: all sent
	Registered Step = "registered" // taker: all registered, nothing answered
	Accepted   Step = "accepted"   // taker: the page says so, nothing answered
	Answered   Step = "answered"   // taker: the answer is sent
	Closed     Step = "closed"     // giver: its copies are closed, nothing said
	Released   Step = "released"   // giver: said so
	Resumed    Step = "resumed"    // taker: goes on
)

// Probe is called at each step of a batch; nil outside tests.
type Probe func(Step)

func (p Probe) at(s Step) {
	if p != nil {
		p(s)
	}
}

func send(c *fdpass.Conn, m *handoffv1.Message, fds []int) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return c.Send(b, fds)
}

func receive(c *fdpass.Conn) (*handoffv1.Message, []int, error) {
	b, fds, err := c.Recv()
	if err != nil {
		return nil, nil, err
	}
	m := &handoffv1.Message{}
	if err := proto.Unmarshal(b, m); err != nil {
		closeAll(fds)
		return nil, nil, fmt.Errorf("a message that is not %s: %w", contract, err)
	}
	return m, fds, nil
}

func sayHello(c *fdpass.Conn, generation uint64, fds []int) error {
	mine := hello.Mine("proxyd", contract)
	mine.Generation = generation
	return send(c, &handoffv1.Message{Message: &handoffv1.Message_Hello{Hello: mine}}, fds)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

var errUnexpected = errors.New("a message that does not belong here")
