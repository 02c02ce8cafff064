package control

import (
	"context"
	"sync/atomic"
	"time"

	"retinue.dev/libs/hello"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/upstream"
	proxyv1 "retinue.dev/services/api/proxy/v1"
)

// adminServer answers proxy/v1. Status reads cells and clocks only, so that it answers even when a loop stands still.
type adminServer struct {
	proxyv1.UnimplementedProxyServer
	s *Server
}

// Status implements proxyv1.ProxyServer.
func (a *adminServer) Status(context.Context, *proxyv1.StatusRequest) (*proxyv1.StatusReply, error) {
	s := a.s
	s.mu.Lock()
	current := s.current
	reply := &proxyv1.StatusReply{Hello: hello.Mine("proxyd", "proxy/v1"), Accepting: s.accepting, Draining: s.draining}
	s.mu.Unlock()
	reply.Hello.Generation = s.generation
	reply.Streams = s.stats.Streams()
	for _, l := range s.loops.all() {
		n := atomic.LoadUint64(&l.cells[counters.WorkerCxActive])
		reply.Connections += n
		reply.Workers = append(reply.Workers, &proxyv1.WorkerStatus{
			Id: uint32(l.ID), Connections: n, Streams: s.stats.WorkerStreams(l.ID), LoopTurns: l.Turns(),
			LastTurnAgeMs: (l.Poller.Now() - l.LastTurn()) / int64(time.Millisecond),
		})
	}
	if current == nil {
		return reply, nil
	}
	reply.SnapshotId = current.ID
	for _, l := range current.Listeners {
		status := &proxyv1.ListenerStatus{Name: l.Name, Draining: reply.Draining}
		for _, address := range l.Object.GetAddresses() {
			status.Addresses = append(status.Addresses, address.GetAddress())
		}
		for _, cells := range l.Cells {
			status.Connections += atomic.LoadUint64(&cells[counters.ListenerDownstreamCxActive])
		}
		reply.Listeners = append(reply.Listeners, status)
	}
	for _, c := range current.Clusters {
		if c == nil {
			continue
		}
		status := &proxyv1.ClusterStatus{Name: c.Name, Endpoints: uint32(len(c.Hosts.Hosts)), Healthy: uint32(membershipOf(c, s.monitor).healthy)}
		state, _ := s.monitor.State(c.Handle)
		status.Degraded = uint32(state.Degraded)
		status.Out = s.out(c)
		for _, cells := range c.Cells {
			status.Connections += atomic.LoadUint64(&cells[counters.ClusterUpstreamCxActive])
			status.RequestsActive += atomic.LoadUint64(&cells[counters.ClusterUpstreamRqActive])
		}
		reply.Clusters = append(reply.Clusters, status)
	}
	return reply, nil
}

// mostOut bounds the endpoints that are told of one cluster.
const mostOut = 20

// out is the endpoints that are not simply healthy.
func (s *Server) out(c *upstream.Config) (list []*proxyv1.EndpointStatus) {
	for _, h := range c.Hosts.Hosts {
		v, drained := s.monitor.Watched(c.Handle, h.Address)
		state := ""
		switch {
		case drained:
			state = "drained"
		case v.Failing:
			state = "unhealthy"
		case v.Ejected:
			state = "ejected"
		case v.Degraded:
			state = "degraded"
		default:
			continue
		}
		told := &proxyv1.EndpointStatus{Address: h.Address, State: state}
		if places := h.Places(); places != nil {
			for _, a := range *places {
				told.Addresses = append(told.Addresses, a.String())
			}
		}
		if list = append(list, told); len(list) == mostOut {
			return list
		}
	}
	return list
}

// Drain implements proxyv1.ProxyServer.
func (a *adminServer) Drain(_ context.Context, request *proxyv1.DrainRequest) (*proxyv1.DrainReply, error) {
	a.s.drain("command", time.Duration(request.GetShutdownTimeMs())*time.Millisecond, 0, false, 0)
	return &proxyv1.DrainReply{}, nil
}

// ReopenLogs implements proxyv1.ProxyServer.
func (a *adminServer) ReopenLogs(context.Context, *proxyv1.ReopenLogsRequest) (*proxyv1.ReopenLogsReply, error) {
	a.s.ReopenLogs()
	return &proxyv1.ReopenLogsReply{}, nil
}
