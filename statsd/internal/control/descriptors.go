package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	statsv1 "retinue.dev/services/api/stats/v1"

	"retinue.dev/statsd/internal/keeper"
)

// patience is how long a peer of the descriptor service may take for a message.
const patience = 5 * time.Second

// maxPeers bounds the connections that are answered at once; more wait in the socket's queue.
const maxPeers = 64

// ServeDescriptors answers on the socket until ctx is done. It returns when it listens; gone is closed when the socket's name is
// gone, which the process must not end before.
func ServeDescriptors(ctx context.Context, socket string, k *keeper.Keeper, policy peer.Policy, log *slog.Logger) (gone <-chan struct{}, err error) {
	gone, err = fdpass.Serve(ctx, socket, maxPeers, log, func(c *fdpass.Conn) error { return answer(c, k, policy) })
	if err != nil {
		return nil, fmt.Errorf("serve descriptors: %w", err)
	}
	return gone, nil
}

// answer serves one connection: requests, each with its reply, until the peer closes.
func answer(conn *fdpass.Conn, k *keeper.Keeper, policy peer.Policy) error {
	cred, err := conn.Peer()
	if err != nil {
		return err
	}
	if err := policy("/retinue.stats.v1.Fd", peer.Cred{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}); err != nil {
		return err
	}
	if err := conn.SetDeadline(patience); err != nil {
		return err
	}
	for first := true; ; first = false {
		message, stray, err := conn.Recv()
		for _, fd := range stray {
			unix.Close(fd)
		}
		if err != nil {
			return err
		}
		request := &statsv1.FdRequest{}
		reply := &statsv1.FdReply{Hello: mine(), Epoch: k.Epoch()}
		var fds []int
		if err = proto.Unmarshal(message, request); err == nil && first {
			err = hello.Check(mine(), request.GetHello())
		}
		if err == nil {
			reply.Names, fds, err = descriptors(k, request)
		}
		if err != nil {
			reply.Error = err.Error()
		}
		message, err = proto.Marshal(reply)
		if err == nil {
			err = conn.Send(message, fds)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		if err != nil || reply.Error != "" {
			return err
		}
	}
}

func descriptors(k *keeper.Keeper, request *statsv1.FdRequest) ([]string, []int, error) {
	switch what := request.GetWhat().(type) {
	case *statsv1.FdRequest_Sheet:
		sheet, lock, err := k.CreateSheet(what.Sheet.GetGeneration(), what.Sheet.GetWorker())
		if err != nil {
			return nil, nil, err
		}
		return []string{"sheet", "lock"}, []int{sheet, lock}, nil
	case *statsv1.FdRequest_Region:
		fd, err := k.Directory()
		if err != nil {
			return nil, nil, err
		}
		return []string{"region"}, []int{fd}, nil
	}
	return nil, nil, errors.New("a request for nothing that this statsd knows: upgrade statsd first")
}
