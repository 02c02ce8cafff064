package tcpproxy

import (
	"net/netip"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
)

// failureFlags is what access logs say of a session that got no connection.
var failureFlags = [...]stream.Flags{
	upstream.NoCluster:         stream.FlagNoCluster,
	upstream.NoHost:            stream.FlagNoHealthyUpstream,
	upstream.Overflow:          stream.FlagUpstreamOverflow,
	upstream.ConnectionFailure: stream.FlagUpstreamConnectionFailure,
	upstream.ConnectionTimeout: stream.FlagUpstreamConnectionFailure,
}

// gone is a session's client for logs, when its connection is gone.
type gone struct {
	stream.Downstream
	local     netip.AddrPort
	transport conn.Transport
}

// LocalAddress is the address that the client connected to.
func (s *gone) LocalAddress() netip.AddrPort { return s.local }

// Transport implements stream.Shown.
func (s *gone) Transport() conn.Transport { return s.transport }

// note remembers of the client's connection what logs may ask for at its end.
func (s *session) note(down *conn.Conn) {
	if len(s.config.Logs) > 0 {
		s.local, s.transport = down.LocalAddress(), down.Transport()
	}
}

// log tells the access logs of a session that has ended. They see it as a stream without a request.
func (s *session) log() {
	if len(s.config.Logs) == 0 {
		return
	}
	r := &s.filter.record
	s.filter.gone = gone{local: s.local, transport: s.transport}
	r.Record(s.filter.Worker, s.config.Shown, &s.filter.gone)
	r.Info = s.info()
	r.End = s.filter.Worker.Now()
	for _, l := range s.config.Logs {
		l.Log(r)
	}
}

// info is what logs and another process are told.
func (s *session) info() stream.Info {
	return stream.Info{
		ConnectionID: s.id, Peer: s.peer, Client: s.peer.Addr(),
		StartWall: s.wall, Start: s.start, UpstreamReady: s.ready,
		BytesReceived: s.read, BytesSent: s.written,
		Attempts: uint32(s.attempts), Flags: s.flags, Details: s.details,
		Host: s.tunnel.Host(), ClusterName: s.clusterName, Link: stream.Link{Remote: s.remote},
	}
}

func (s *session) adoptInfo(i *stream.Info) {
	s.id, s.peer = i.ConnectionID, i.Peer
	s.wall, s.start, s.ready = i.StartWall, i.Start, i.UpstreamReady
	s.attempts, s.flags, s.clusterName = int(i.Attempts), i.Flags, i.ClusterName
	s.remote = i.Link.Remote
}
