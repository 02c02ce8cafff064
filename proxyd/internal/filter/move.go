package filter

import (
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/parcel"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// Mover is the upstream connection of a tunnel that could move to another process; nil when there is none.
func (r *Router) Mover() upstream.Mover {
	if m, ok := r.try.encoder.(upstream.Mover); ok && r.headersSeen && r.body.Len() == 0 && m.Movable() {
		return m
	}
	return nil
}

// Describe packs the router of a tunnel.
func (r *Router) Describe(u *handoffv1.Upgraded) {
	u.ServerAbove, u.ClientAbove = r.try.above, r.downAbove
}

// Adopt makes the router of a tunnel out of what another process described, with its upstream connection. The route was
// taken there: what is left of it is the cluster.
func (r *Router) Adopt(s *stream.Stream, shared *Shared, routes *Routes, handle cluster.Handle, p *parcel.Parcel, u *handoffv1.Upgraded) (upstream.Mover, error) {
	r.Begin(s, shared, routes)
	r.target = &target{handle: handle, name: s.ClusterName}
	r.action = &action{name: s.RouteName, hostName: s.HostName, idle: -1, maxDuration: -1, targets: []target{*r.target}}
	m, host, err := shared.Upstream.AdoptTunnelClient(handle, p, u, &r.attempt)
	if err != nil {
		return nil, err
	}
	s.Host = host
	r.try.encoder, r.headersSeen, r.bodySent, r.interim = m, true, true, true
	r.ended = u.GetRequestEnded()
	r.try.above, r.downAbove = u.GetServerAbove(), u.GetClientAbove()
	return m, nil
}
