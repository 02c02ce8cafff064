package spans

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
	suitev1 "retinue.dev/services/api/suite/v1"
)

const (
	// maxPeers bounds the peers at a time: generations of proxyd.
	maxPeers = 64
	// patience is how long a peer may take to say hello.
	patience = 5 * time.Second
)

// Serve takes spans on the socket until ctx is done. It returns when it listens; gone is closed when the socket's name is gone, which
// the process must not end before.
func (e *Exporter) Serve(ctx context.Context, socket string, policy peer.Policy) (gone <-chan struct{}, err error) {
	gone, err = fdpass.Serve(ctx, socket, maxPeers, e.log, func(c *fdpass.Conn) error { return e.answer(c, policy) })
	if err != nil {
		return nil, fmt.Errorf("serve spans: %w", err)
	}
	return gone, nil
}

// answer serves one connection: the hello, then spans until the peer closes. It answers why it ended.
func (e *Exporter) answer(conn *fdpass.Conn, policy peer.Policy) error {
	cred, err := conn.Peer()
	if err != nil {
		return err
	}
	if err := policy("/retinue.stats.v1.Spans", peer.Cred{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}); err != nil {
		return err
	}
	if err := conn.SetDeadline(patience); err != nil {
		return err
	}
	first, err := receive(conn)
	if err != nil {
		return err
	}
	reply := &statsv1.SpansReply{Hello: mine()}
	refused := hello.Check(mine(), first.GetHello())
	if refused != nil {
		reply.Error = refused.Error()
	}
	message, err := proto.Marshal(reply)
	if err == nil {
		err = conn.Send(message, nil)
	}
	if err = errors.Join(refused, err); err != nil {
		return err
	}
	if err := conn.SetDeadline(0); err != nil {
		return err
	}
	for {
		m, err := receive(conn)
		if err == nil {
			err = e.Take(m)
		}
		if err != nil {
			return err
		}
	}
}

func receive(conn *fdpass.Conn) (*statsv1.Spans, error) {
	message, stray, err := conn.Recv()
	for _, fd := range stray {
		unix.Close(fd)
	}
	if err != nil {
		return nil, err
	}
	m := &statsv1.Spans{}
	return m, proto.Unmarshal(message, m)
}

func mine() *suitev1.Hello { return hello.Mine("statsd", region.Contract) }
