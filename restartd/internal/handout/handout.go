// Package handout gives listening sockets to generations: restartd.fd.sock, SOCK_SEQPACKET with SCM_RIGHTS.
//
// A generation connects, sends one SocketsRequest, and is sent SocketsReply messages, each with one descriptor for each
// socket that it names, until one has `more` unset; then the connection ends. An error is a reply with `error` and no
// socket. The generation must be known, and alive as the very process that asks.
package handout

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	restartv1 "retinue.dev/services/api/restart/v1"

	"retinue.dev/restartd/internal/bank"
)

const (
	patience = 5 * time.Second
	maxConns = 64
)

// Server hands out sockets. Serve runs until the listener is closed.
type Server struct {
	Sockets func(listeners []string) ([]bank.Socket, error)
	Knows   func(generation uint64, pid int) bool
	Log     *slog.Logger
}

// Serve accepts until l is closed, and waits for the conversations under way.
func (s *Server) Serve(l *fdpass.Listener) {
	var all sync.WaitGroup
	defer all.Wait()
	room := make(chan struct{}, maxConns)
	for {
		room <- struct{}{}
		c, err := l.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			defer func() { <-room }()
			defer c.Close()
			if err := s.answer(c); err != nil {
				s.Log.Warn("sockets not handed out", "error", err)
			}
		})
	}
}

func (s *Server) answer(c *fdpass.Conn) error {
	if err := c.SetDeadline(patience); err != nil {
		return err
	}
	cred, err := c.Peer()
	if err != nil {
		return err
	}
	message, fds, err := c.Recv()
	for _, fd := range fds { // nobody asked for any
		unix.Close(fd)
	}
	if err != nil {
		return err
	}
	mine := hello.Mine("restartd", "restart/v1")
	var r restartv1.SocketsRequest
	err = proto.Unmarshal(message, &r)
	if err == nil {
		err = hello.Check(mine, r.GetHello())
	}
	if err == nil && !s.Knows(r.GetGeneration(), int(cred.Pid)) {
		err = fmt.Errorf("process %d is not generation %d of restartd's table", cred.Pid, r.GetGeneration())
	}
	var sockets []bank.Socket
	if err == nil {
		sockets, err = s.Sockets(r.GetListeners())
	}
	if err != nil {
		b, _ := proto.Marshal(&restartv1.SocketsReply{Hello: mine, Error: err.Error()})
		if sent := c.Send(b, nil); sent != nil {
			return sent
		}
		return err
	}
	defer func() {
		for _, s := range sockets {
			unix.Close(s.FD)
		}
	}()
	for first := true; first || len(sockets) > 0; first = false {
		reply := &restartv1.SocketsReply{Hello: mine}
		n := fill(reply, sockets)
		reply.More = n < len(sockets)
		b, err := proto.Marshal(reply)
		if err != nil {
			return err
		}
		out := make([]int, n)
		for i, s := range sockets[:n] {
			out[i] = s.FD
		}
		if err := c.Send(b, out); err != nil {
			return err
		}
		for _, fd := range out {
			unix.Close(fd)
		}
		sockets = sockets[n:]
	}
	return nil
}

// fill puts as many sockets into the reply as one message holds, one at least, and returns their number.
func fill(reply *restartv1.SocketsReply, sockets []bank.Socket) int {
	const slack = 16 // the field's tag and length, and `more`
	size := proto.Size(reply) + slack
	n := 0
	for ; n < len(sockets) && n < fdpass.MaxFDs; n++ {
		s := sockets[n]
		p := &restartv1.Socket{
			Listener: s.Listener, Address: s.Address, AddressIndex: uint32(s.Index),
			Shard: uint32(s.Shard), Shards: uint32(s.Shards), Shared: s.Shared, BoundAddress: s.Bound, SecondHalf: s.SecondHalf,
		}
		if size += proto.Size(p) + slack; n > 0 && size > fdpass.MaxMessage {
			break
		}
		reply.Sockets = append(reply.Sockets, p)
	}
	return n
}
