// Package control answers restart/v1 over gRPC: it turns streams and calls into the machine's questions.
package control

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	restartv1 "retinue.dev/services/api/restart/v1"

	"retinue.dev/restartd/internal/bank"
	"retinue.dev/restartd/internal/generation"
	"retinue.dev/restartd/internal/plugin"
)

// Server is the restart/v1 service. Its fields are set before it is registered; gRPC calls it from many goroutines.
type Server struct {
	restartv1.UnimplementedRestartServer
	Machine *generation.Machine
	Bank    *bank.Bank
	Plugins *plugin.Manager
}

// Register adds the service to a gRPC server.
func (s *Server) Register(g *grpc.Server) { restartv1.RegisterRestartServer(g, s) }

// Attach implements restart/v1: one stream of one generation, whose process the kernel names.
func (s *Server) Attach(stream restartv1.Restart_AttachServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	theirs := first.GetHello()
	if theirs == nil {
		return status.Error(codes.InvalidArgument, "the first message of Attach is a hello")
	}
	mine := hello.Mine("restartd", "restart/v1")
	if err := hello.Check(mine, theirs.GetHello()); err != nil {
		return err
	}
	cred, ok := peer.FromContext(stream.Context())
	if !ok {
		return status.Error(codes.Unauthenticated, "the kernel did not say who is calling")
	}
	if err := stream.Send(&restartv1.AttachResponse{Message: &restartv1.AttachResponse_Hello{Hello: mine}}); err != nil {
		return err
	}
	session, err := s.Machine.Attach(theirs, int(cred.PID))
	if err != nil {
		return refusal(err)
	}
	defer s.Machine.Detach(session)
	received := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				received <- err
				return
			}
			s.Machine.Receive(session, m)
		}
	}()
	for {
		select {
		case c := <-session.Commands():
			if err := stream.Send(&restartv1.AttachResponse{Message: &restartv1.AttachResponse_Command{Command: c}}); err != nil {
				return err
			}
		case <-session.Done():
			return status.Error(codes.Aborted, "this stream was replaced, or its commands were not read: attach again")
		case <-received:
			return nil
		}
	}
}

// Upgrade implements restart/v1. The upgrade does not need its caller: one that hangs up changes nothing.
func (s *Server) Upgrade(r *restartv1.UpgradeRequest, stream restartv1.Restart_UpgradeServer) error {
	f, err := s.Machine.Upgrade(r)
	if err != nil {
		return refusal(err)
	}
	return s.follow(f, stream)
}

// Decide implements restart/v1.
func (s *Server) Decide(r *restartv1.DecideRequest, stream restartv1.Restart_DecideServer) error {
	f, err := s.Machine.Decide(r)
	if err != nil {
		return refusal(err)
	}
	return s.follow(f, stream)
}

// follow sends what f is told until the last event, or the caller hangs up.
func (s *Server) follow(f *generation.Follower, stream grpc.ServerStreamingServer[restartv1.UpgradeEvent]) error {
	defer s.Machine.Unfollow(f)
	for {
		select {
		case e, ok := <-f.Events():
			if !ok {
				return nil
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// Status implements restart/v1.
func (s *Server) Status(context.Context, *restartv1.StatusRequest) (*restartv1.StatusReply, error) {
	r := &restartv1.StatusReply{Hello: hello.Mine("restartd", "restart/v1")}
	for _, l := range s.Bank.Listeners() {
		r.Listeners = append(r.Listeners, &restartv1.BankListener{Name: l.Name, Addresses: l.Addresses, Shards: uint32(l.Shards), Shared: l.Shared})
	}
	if err := s.Machine.Status(r); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return r, nil
}

func refusal(err error) error {
	var r *generation.Refused
	if errors.As(err, &r) {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}
