package tcpproxy

import (
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
)

// A network filter stands between the two ends of a session: it is shown what arrives and gives on what it will. Without one, and
// when it says that it has seen enough, the bytes pass by themselves.

// Direction is that of the client's bytes, or that of the server's.
type Direction uint8

// The directions.
const (
	FromClient Direction = iota
	FromServer
)

// FilterFactory makes the filter of one session. Shared by workers.
type FilterFactory interface {
	NewNetworkFilter(w *worker.Worker, s Session) NetworkFilter
}

// NetworkFilter is one filter in one session. All calls come from the worker's thread; Closed is the last.
type NetworkFilter interface {
	// Connect is called when the client is there, before a host is looked for. false: the filter will say Session.Go, or abort.
	Connect() bool
	// Data shows bytes, borrowed for the call. true: the filter took them and gives on what it will; false: they pass.
	Data(d Direction, data []byte) bool
	// End tells a FIN. true: the filter says Session.End when it has given on what it holds.
	End(d Direction) bool
	// Passing tells that the filter wants to see no more, and holds nothing.
	Passing() bool
	// Holding tells that bytes or a FIN wait in the filter: the session has not said its last.
	Holding() bool
	Closed()
}

// Session is what a filter may do to its session.
type Session interface {
	Worker() *worker.Worker
	// Info is what is known of the connection.
	Info() stream.Info
	ListenerName() string
	// Go goes on after Connect.
	Go()
	// Give sends bytes on in their direction. Reply sends bytes to where those of the direction come from.
	Give(d Direction, data []byte)
	Reply(d Direction, data []byte)
	End(d Direction)
	// Pause stops reading a direction's bytes, Resume goes on. Counted.
	Pause(d Direction)
	Resume(d Direction)
	// Abort ends the session: both sides are reset, and the log says why. Finish lets what was sent to the client leave first.
	Abort(flags stream.Flags, details string)
	Finish(details string)
	// Note adds to what the log says.
	Note(flags stream.Flags)
}

// filtered is the session as its filter sees it.
type filtered struct{ *session }

// Worker implements Session.
func (s filtered) Worker() *worker.Worker { return s.filter.Worker }

// Info implements Session.
func (s filtered) Info() stream.Info { return s.info() }

// ListenerName implements Session.
func (s filtered) ListenerName() string { return s.config.Name }

// Go implements Session.
func (s filtered) Go() {
	if s.down != nil && s.up == nil && s.attempts == 0 {
		s.connect()
	}
}

// Give implements Session.
func (s filtered) Give(d Direction, data []byte) { send(s.to(d), data) }

// Reply implements Session.
func (s filtered) Reply(d Direction, data []byte) { send(s.from(d), data) }

// End implements Session.
func (s filtered) End(d Direction) {
	if to := s.to(d); to != nil {
		to.CloseWrite()
	}
	s.drained()
}

// Pause implements Session.
func (s filtered) Pause(d Direction) { s.pause(s.from(d)) }

// Resume implements Session.
func (s filtered) Resume(d Direction) { s.goOn(s.from(d)) }

// Abort implements Session.
func (s filtered) Abort(flags stream.Flags, details string) {
	s.flags |= flags
	s.details = details
	s.abort()
}

// Finish implements Session.
func (s filtered) Finish(details string) {
	s.details = details
	if s.up != nil {
		s.up.Abort()
	}
	if s.down != nil {
		s.down.CloseAfterFlush(0)
	}
}

// Note implements Session.
func (s filtered) Note(flags stream.Flags) { s.flags |= flags }

func (s *session) from(d Direction) *conn.Conn {
	if d == FromClient {
		return s.down
	}
	return s.up
}

func (s *session) to(d Direction) *conn.Conn { return s.from(1 - d) }

func send(to *conn.Conn, data []byte) {
	if to != nil && len(data) > 0 {
		to.Send(data)
	}
}

// shown shows bytes to the session's filter, if it has one that wants them: true when it took them.
func (s *session) shown(d Direction, data []byte) bool {
	return s.network != nil && !s.network.Passing() && s.network.Data(d, data)
}

// spliceable tells that no filter wants to see the session's bytes.
func (s *session) spliceable() bool { return s.network == nil || s.network.Passing() }
