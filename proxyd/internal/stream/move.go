package stream

import (
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/parcel"
	"retinue.dev/proxyd/internal/worker"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// Describe packs what logs tell of a stream, for the process that goes on with it.
func (i *Info) Describe(p *parcel.Parcel) *handoffv1.Log {
	l := &handoffv1.Log{
		Id: i.ID, Peer: parcel.Address(i.Peer), StartWall: i.StartWall, Start: i.Start,
		RequestReceived: i.RequestReceived, UpstreamReady: i.UpstreamReady,
		UpstreamSent: i.UpstreamSent, UpstreamReceived: i.UpstreamReceived,
		UpstreamEnded: i.UpstreamEnded, ResponseStarted: i.ResponseStarted,
		BytesReceived: i.BytesReceived, BytesSent: i.BytesSent, Status: int32(i.Status), Attempts: i.Attempts,
		Flags: uint64(i.Flags), Details: i.Details, Cluster: i.ClusterName, Route: i.RouteName, VirtualHost: i.HostName,
	}
	if i.Client.IsValid() {
		l.Client = &handoffv1.Address{Ip: i.Client.AsSlice(), Zone: i.Client.Zone()}
	}
	if i.Host != nil {
		l.UpstreamHost = i.Host.Address
		if !i.Host.IP.IsValid() { // else that is it
			l.UpstreamRemote = parcel.Address(i.Link.Remote)
		}
	}
	return l
}

// Adopt takes what another process described. Host is left to who finds it.
func (i *Info) Adopt(p *parcel.Parcel, l *handoffv1.Log, connection uint64) {
	*i = Info{
		ID: l.GetId(), ConnectionID: connection, Peer: parcel.AddrPort(l.GetPeer()), Client: parcel.AddrPort(l.GetClient()).Addr(),
		StartWall: l.GetStartWall(), Start: l.GetStart(),
		RequestReceived: l.GetRequestReceived(), UpstreamReady: l.GetUpstreamReady(),
		UpstreamSent: l.GetUpstreamSent(), UpstreamReceived: l.GetUpstreamReceived(),
		UpstreamEnded: l.GetUpstreamEnded(), ResponseStarted: l.GetResponseStarted(),
		BytesReceived: l.GetBytesReceived(), BytesSent: l.GetBytesSent(), Status: int(l.GetStatus()), Attempts: l.GetAttempts(),
		Flags: Flags(l.GetFlags()), Details: l.GetDetails(),
		ClusterName: l.GetCluster(), RouteName: l.GetRoute(), HostName: l.GetVirtualHost(),
		Link: Link{Remote: parcel.AddrPort(l.GetUpstreamRemote())},
	}
}

// Movable tells whether the stream is a tunnel in which no filter has a part: what it knows is said by Describe.
func (s *Stream) Movable() bool { return s.tunnel && s.started && !s.finished && len(s.chain) == 0 }

// Describe packs a tunnel.
func (s *Stream) Describe(p *parcel.Parcel, u *handoffv1.Upgraded) {
	u.Log = s.Info.Describe(p)
	u.Activity, u.IdleTimeout, u.MaxDeadline = s.activity, s.idleTimeout, s.maxDeadline
	u.Request = s.Request.Describe()
	if s.Response != nil {
		u.Response = s.Response.Describe()
	}
	u.ClientEnded, u.ResponseEnded = s.requestEnded, s.responseEnded
}

// Release ends a tunnel that goes on elsewhere: no log, no callback.
func (s *Stream) Release() {
	s.finished = true
	s.Cells[counters.HTTPDownstreamRqActive]--
}

// Adopt begins a tunnel that another process described, in place of Begin.
func (s *Stream) Adopt(w *worker.Worker, config *Config, down Downstream, terminal Terminal, p *parcel.Parcel, u *handoffv1.Upgraded, connection uint64) {
	s.begin(w, config, down, terminal)
	s.chain = s.chain[:0] // movable means that there was none
	s.Info.Adopt(p, u.GetLog(), connection)
	s.Request.Restore(u.GetRequest())
	s.RequestTrailers.Reset()
	s.local.Restore(u.GetResponse())
	s.Response = &s.local
	s.Upgrade, s.tunnel, s.started, s.encoding = true, true, true, true
	s.requestEnded, s.responseEnded = u.GetClientEnded(), u.GetResponseEnded()
	if s.above = 0; u.GetClientAbove() {
		s.above = 1 // the client's codec alone: there is no filter
	}
	s.activity, s.idleTimeout = u.GetActivity(), u.GetIdleTimeout()
	s.reqDeadline, s.maxDeadline = 0, u.GetMaxDeadline()
}
