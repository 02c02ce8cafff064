package region

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// Contract is the contract that the descriptor service speaks.
const Contract = "stats/v1"

// OpenSheet asks statsd, at <dir>/statsd.fd.sock, for the sheet of one writer and makes this process its writer. A
// process asks once for each worker and once for its main side (MainWorker); it asks again only when the epoch of the
// region has changed, which means that the region began anew.
func OpenSheet(ctx context.Context, socket string, generation uint64, worker uint32) (*Sheet, error) {
	_, fds, err := fetch(ctx, socket, &statsv1.FdRequest{What: &statsv1.FdRequest_Sheet{
		Sheet: &statsv1.SheetRequest{Generation: generation, Worker: worker},
	}}, 2)
	if err != nil {
		return nil, fmt.Errorf("open the stats sheet of worker %d of generation %d: %w", worker, generation, err)
	}
	return AttachSheet(fds[0], fds[1])
}

// fetch sends one request and returns the reply and its descriptors, as many as are wanted or an error.
func fetch(ctx context.Context, socket string, request *statsv1.FdRequest, want int) (*statsv1.FdReply, []int, error) {
	mine := hello.Mine("proxyd", Contract)
	request.Hello = mine
	message, err := proto.Marshal(request)
	if err != nil {
		return nil, nil, err
	}
	conn, err := fdpass.Dial(socket)
	if err != nil {
		return nil, nil, fmt.Errorf("statsd does not answer: %w", err)
	}
	defer conn.Close()
	patience := 5 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, max(time.Until(deadline), time.Millisecond))
	}
	if err := conn.SetDeadline(patience); err != nil {
		return nil, nil, err
	}
	if err := conn.Send(message, nil); err != nil {
		return nil, nil, fmt.Errorf("ask statsd: %w", err)
	}
	answer, fds, err := conn.Recv()
	if err != nil {
		return nil, nil, fmt.Errorf("wait for statsd: %w", err)
	}
	reply := &statsv1.FdReply{}
	if err = proto.Unmarshal(answer, reply); err == nil {
		err = hello.Check(mine, reply.GetHello())
	}
	switch {
	case err != nil:
	case reply.GetError() != "":
		err = errors.New(reply.GetError())
	case len(fds) != want:
		err = fmt.Errorf("statsd sent %d descriptors where %d are due", len(fds), want)
	default:
		return reply, fds, nil
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return nil, nil, err
}
