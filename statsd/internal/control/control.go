// Package control answers stats/v1: the gRPC service on statsd.sock and the descriptor service on statsd.fd.sock.
package control

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
	suitev1 "retinue.dev/services/api/suite/v1"

	"retinue.dev/statsd/internal/exposition"
	"retinue.dev/statsd/internal/keeper"
)

// Bounds of a request, far above what a daemon of the suite sends.
const (
	maxSchemas = 256
	maxGroups  = 100_000
	maxSeries  = 500_000
)

// Service is the gRPC service.
type Service struct {
	statsv1.UnimplementedStatsServer
	keeper *keeper.Keeper
	source *exposition.Source
	listen func() string
}

// NewService answers for a keeper and a source; listen tells where the HTTP server listens.
func NewService(k *keeper.Keeper, source *exposition.Source, listen func() string) *Service {
	return &Service{keeper: k, source: source, listen: listen}
}

func mine() *suitev1.Hello { return hello.Mine("statsd", region.Contract) }

// Declare implements stats/v1.
func (s *Service) Declare(_ context.Context, r *statsv1.DeclareRequest) (*statsv1.DeclareReply, error) {
	if err := hello.Check(mine(), r.GetHello()); err != nil {
		return nil, err
	}
	if len(r.GetSchemas()) > maxSchemas || len(r.GetGroups()) > maxGroups {
		return nil, status.Errorf(codes.InvalidArgument, "%d schemas and %d groups in one request: at most %d and %d are possible, send several",
			len(r.GetSchemas()), len(r.GetGroups()), maxSchemas, maxGroups)
	}
	bases, epoch, reason := s.keeper.Declare(r.GetHello().GetGeneration(), r.GetSchemas(), r.GetGroups())
	return &statsv1.DeclareReply{Hello: mine(), Bases: bases, RefusedReason: reason, Epoch: epoch}, nil
}

// Retire implements stats/v1.
func (s *Service) Retire(_ context.Context, r *statsv1.RetireRequest) (*statsv1.RetireReply, error) {
	if err := hello.Check(mine(), r.GetHello()); err != nil {
		return nil, err
	}
	if len(r.GetBases()) > maxGroups {
		return nil, status.Errorf(codes.InvalidArgument, "%d groups in one request: at most %d are possible", len(r.GetBases()), maxGroups)
	}
	s.keeper.Retire(r.GetHello().GetGeneration(), r.GetEpoch(), r.GetBases())
	return &statsv1.RetireReply{}, nil
}

// Query implements stats/v1.
func (s *Service) Query(_ context.Context, r *statsv1.QueryRequest) (*statsv1.QueryReply, error) {
	series, err := s.source.Query(r.GetMatch(), maxSeries)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "read the stats region: %v", err)
	}
	return &statsv1.QueryReply{Series: series}, nil
}

// Status implements stats/v1.
func (s *Service) Status(context.Context, *statsv1.StatusRequest) (*statsv1.StatusReply, error) {
	u := s.keeper.Usage()
	return &statsv1.StatusReply{
		Hello: mine(), Epoch: s.keeper.Epoch(), Groups: uint64(u.Groups), Series: uint64(u.Series), Bytes: u.Bytes,
		SheetsLive: uint32(u.SheetsLive), SheetsFolded: u.Folded, DeclaresRefused: u.Refused, Listen: s.listen(),
	}, nil
}
