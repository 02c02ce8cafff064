package tcpproxy

import (
	"errors"
	"fmt"
	"net/netip"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/parcel"
	"retinue.dev/proxyd/internal/stream"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// Pack parks sessions and packs them, as many as the parcel has room for. One that is being connected or that ends comes later
// or not at all.
func (f *Filter) Pack(p *parcel.Parcel) {
	for s := f.sessions; s != nil && p.Room(); {
		next := s.next
		if s.movable() {
			s.pack(p)
		}
		s = next
	}
}

// HandOver begins to hand over: sessions that another taker refused are movable again.
func (f *Filter) HandOver(func()) {
	for s := f.sessions; s != nil; s = s.next {
		s.refused = false
	}
}

func (s *session) movable() bool {
	return !s.refused && s.network == nil && s.down != nil && s.up != nil && s.down.Movable() && s.up.Movable()
}

func (s *session) pack(p *parcel.Parcel) {
	f := s.filter
	s.unlink()
	f.Worker.Timers.Stop(&s.timer)
	s.down.Park()
	s.up.Park()
	info := s.info()
	t := &handoffv1.Tunnel{
		Client: s.down.Describe(p), Server: s.up.Describe(p), Log: info.Describe(p), Activity: s.activity,
	}
	p.Add(&handoffv1.Connection{Kind: &handoffv1.Connection_Tunnel{Tunnel: t}}, s)
}

// Release implements parcel.Parked: the session ends here without a word, its log line is written where it goes on.
func (s *session) Release() {
	s.down.Release()
	s.up.Release()
	s.down, s.up = nil, nil
	s.ended = true
	s.filter.open--
	s.tunnel.Moved()
	s.cells[counters.TCPDownstreamCxActive]--
	s.listener.Gone()
	s.filter.Worker.Bury(s)
}

// Unpark implements parcel.Parked.
func (s *session) Unpark(refused bool) {
	s.refused = refused
	s.link()
	s.arm()
	down, up := s.down.Unpark(), s.up.Unpark()
	if !down || !up {
		s.abort()
	}
}

// Resume implements parcel.Parked.
func (s *session) Resume() {
	s.link()
	s.arm()
	s.down.Resume()
	s.up.Resume()
}

func (s *session) arm() {
	if s.config.IdleTimeout > 0 {
		s.filter.Worker.Timers.Set(&s.timer, s.activity+s.config.IdleTimeout)
	}
}

// Adopt makes a session out of what another process packed.
func (f *Filter) Adopt(p *parcel.Parcel, t *handoffv1.Tunnel, l *listener.Listener, handle func(string) (cluster.Handle, bool)) (parcel.Parked, error) {
	if t.GetClient() == nil || t.GetServer() == nil || t.GetLog() == nil {
		return nil, errors.New("a part is missing")
	}
	h, ok := handle(t.GetLog().GetCluster())
	if !ok {
		return nil, fmt.Errorf("cluster %q is not in the snapshot", t.GetLog().GetCluster())
	}
	s := f.session()
	s.filter, s.config, s.cells, s.listener = f, f.Config, f.Config.Cells[f.Worker.ID], l
	s.client.session, s.server.session, s.timer.Callback = s, s, s
	var info stream.Info
	info.Adopt(p, t.GetLog(), t.GetClient().GetId())
	s.adoptInfo(&info)
	s.activity = t.GetActivity()
	if err := s.adoptSockets(p, t); err != nil {
		f.Worker.Bury(s)
		return nil, err
	}
	s.tunnel, _ = f.Manager.AdoptTunnel(h, t.GetLog().GetUpstreamHost())
	f.open++
	s.cells[counters.TCPDownstreamCxActive]++
	l.Adopted()
	return s, nil
}

// adoptSockets leaves nothing behind when it fails.
func (s *session) adoptSockets(p *parcel.Parcel, t *handoffv1.Tunnel) error {
	w, options := s.filter.Worker, &s.listener.Options
	down, err := conn.Adopt(w, p, t.GetClient(), s.peer, &s.client, options)
	if err != nil {
		return fmt.Errorf("the client: %w", err)
	}
	up, err := conn.Adopt(w, p, t.GetServer(), netip.AddrPort{}, &s.server, options)
	if err != nil {
		down.Release()
		return fmt.Errorf("the server: %w", err)
	}
	if c := t.GetClient().GetSplice(); c != nil {
		err = down.AdoptSplice(p, c, up, &s.client)
	}
	if c := t.GetServer().GetSplice(); c != nil && err == nil {
		err = up.AdoptSplice(p, c, down, &s.server)
	}
	if err != nil {
		down.Release()
		up.Release()
		return fmt.Errorf("splice: %w", err)
	}
	s.down, s.up = down, up
	s.note(down)
	return nil
}
