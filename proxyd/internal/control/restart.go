package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	restartv1 "retinue.dev/services/api/restart/v1"
)

const (
	// reportEvery is how often restartd hears that all is well: of connections, errors and stalled loops.
	reportEvery = time.Second
	// endPatience is how long the end waits for restartd to take the last report.
	endPatience = 300 * time.Millisecond
)

// received is one listening socket that restartd handed over.
type received struct {
	*restartv1.Socket
	fd int
}

// fetchSockets asks restartd for the sockets of listeners. Copies of the descriptors belong to the caller.
func fetchSockets(path string, generation uint64, listeners []string) ([]received, error) {
	c, err := fdpass.Dial(path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(5 * time.Second); err != nil {
		return nil, err
	}
	mine := hello.Mine("proxyd", "restart/v1")
	mine.Generation = generation
	request, err := proto.Marshal(&restartv1.SocketsRequest{Hello: mine, Generation: generation, Listeners: listeners})
	if err != nil {
		return nil, err
	}
	if err := c.Send(request, nil); err != nil {
		return nil, err
	}
	var out []received
	for more := true; more; {
		raw, fds, err := c.Recv()
		var reply restartv1.SocketsReply
		if err == nil {
			err = proto.Unmarshal(raw, &reply)
		}
		if err == nil && reply.GetError() != "" {
			err = errors.New(reply.GetError())
		}
		if err == nil && len(fds) != len(reply.GetSockets()) {
			err = fmt.Errorf("restartd named %d sockets and sent %d", len(reply.GetSockets()), len(fds))
		}
		if err == nil && len(out) == 0 {
			err = hello.Check(mine, reply.GetHello())
		}
		for i, fd := range fds {
			if i < len(reply.GetSockets()) {
				out = append(out, received{reply.GetSockets()[i], fd})
			} else {
				closeFD(fd)
			}
		}
		if err != nil {
			for _, s := range out {
				closeFD(s.fd)
			}
			return nil, err
		}
		more = reply.GetMore()
	}
	return out, nil
}

// attach is the generation's life with restartd: it says ready, obeys, reports, and comes back when restartd did.
func (s *Server) attach(ctx context.Context, client restartv1.RestartClient) {
	defer close(s.told)
	s.waitSockets(ctx)
	pause := firstPause
	for ctx.Err() == nil && !s.over() {
		began := time.Now()
		if err := s.attachOnce(ctx, client); err != nil && ctx.Err() == nil {
			s.env.Log.Debug("restartd is away", "error", err)
		}
		if time.Since(began) > goodSession {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-s.ended:
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

func (s *Server) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// waitSockets holds readiness back until every listener has its sockets: a generation that could not accept must not take over.
func (s *Server) waitSockets(ctx context.Context) {
	limit := time.After(socketPatience)
	tick := time.NewTicker(firstPause)
	defer tick.Stop()
	for {
		s.ops.Lock()
		s.fetch()
		missing := s.missing()
		s.ops.Unlock()
		if len(missing) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return
		case <-ctx.Done():
			return
		case <-limit:
			s.env.Log.Warn("ready without all sockets: restartd does not have them", "listeners", strings.Join(slices.Sorted(maps.Keys(missing)), " "))
			return
		}
	}
}

func (s *Server) attachOnce(ctx context.Context, client restartv1.RestartClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Attach(ctx)
	if err != nil {
		return err
	}
	mine := hello.Mine("proxyd", "restart/v1")
	mine.Generation = s.generation
	accepting, draining, part := s.phase()
	err = stream.Send(&restartv1.AttachRequest{Message: &restartv1.AttachRequest_Hello{Hello: &restartv1.AttachHello{
		Hello: mine, Generation: s.generation, Workers: uint32(s.loops.count()), Accepting: accepting, Draining: draining, Successor: s.successor(), Heartbeats: true, Parts: true, Part: part,
	}}})
	if err != nil {
		return err
	}
	if err := stream.Send(&restartv1.AttachRequest{Message: &restartv1.AttachRequest_Ready{Ready: &restartv1.Ready{SnapshotId: s.snapshotID()}}}); err != nil {
		return err
	}
	type incoming struct {
		*restartv1.AttachResponse
		err error
	}
	messages := make(chan incoming)
	go func() {
		for {
			m, err := stream.Recv()
			select {
			case messages <- incoming{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	report := func(id uint64, failed error) error {
		r := s.report()
		r.CommandId = id
		if failed != nil {
			r.Error = failed.Error()
		}
		return stream.Send(&restartv1.AttachRequest{Message: &restartv1.AttachRequest_Report{Report: r}})
	}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			if err := report(0, nil); err != nil {
				return err
			}
			if err := stream.CloseSend(); err != nil {
				return err
			}
			for { // until restartd has read it
				select {
				case m := <-messages:
					if m.err != nil {
						return nil
					}
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(endPatience):
					return nil
				}
			}
		case <-tick.C:
			if err := report(0, nil); err != nil {
				return err
			}
		case m := <-messages:
			if m.err != nil {
				return m.err
			}
			if h := m.GetHello(); h != nil {
				if err := hello.Check(mine, h); err != nil {
					s.env.Log.Error("restartd is refused", "error", err)
					return err
				}
			}
			if command := m.GetCommand(); command != nil {
				failed := s.obey(command)
				if err := report(command.GetId(), failed); err != nil {
					return err
				}
			}
		}
	}
}

func (s *Server) obey(command *restartv1.Command) error {
	switch what := command.GetWhat().(type) {
	case *restartv1.Command_Serve:
		return s.serve(what.Serve.GetPart())
	case *restartv1.Command_StopAccepting:
		s.stopAccepting()
	case *restartv1.Command_Drain:
		d := what.Drain
		ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
		s.drain(d.GetCause(), ms(d.GetShutdownTimeMs()), ms(d.GetDrainTimeMs()), d.GetImmediate(), d.GetSuccessor())
	case *restartv1.Command_Terminate:
		s.terminate()
	}
	return nil
}
