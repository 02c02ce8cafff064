package generation

import (
	"fmt"
	"sync"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// Session is one Attach stream of a generation. The RPC handler makes it by Attach, sends what Commands yields, hands in
// what it receives by Receive, and calls Detach when the stream has ended. Done is closed when the machine wants the
// stream to end: a newer one replaced it, the process is gone, or it does not read its commands.
type Session struct {
	g        *generation
	commands chan *restartv1.Command
	done     chan struct{}
	once     sync.Once
	told     string // the last command, by the loop alone
}

// Commands yields what the generation shall be told.
func (s *Session) Commands() <-chan *restartv1.Command { return s.commands }

// Done is closed when the stream shall end.
func (s *Session) Done() <-chan struct{} { return s.done }

func (s *Session) end() { s.once.Do(func() { close(s.done) }) }

func (s *Session) send(c *restartv1.Command) {
	select {
	case s.commands <- c:
	default:
		s.end() // it attaches again, and is told what then holds
	}
}

// Refused is an answer for the caller: the machine is well, what was asked cannot be done now.
type Refused struct{ Reason string }

func (r *Refused) Error() string { return r.Reason }

// Attach opens a session for the generation that hello names, whose process must be pid.
func (m *Machine) Attach(hello *restartv1.AttachHello, pid int) (*Session, error) {
	s := &Session{commands: make(chan *restartv1.Command, 16), done: make(chan struct{})}
	var refused error
	err := m.call(func() {
		g := m.gens[hello.GetGeneration()]
		switch {
		case g == nil || !g.live:
			refused = &Refused{fmt.Sprintf("generation %d is not known or has ended: nobody waits for this process, it should exit", hello.GetGeneration())}
			return
		case g.process.PID != pid:
			refused = &Refused{fmt.Sprintf("generation %d is process %d, not %d", g.Number, g.process.PID, pid)}
			return
		}
		if g.session != nil {
			g.session.end()
		}
		s.g = g
		g.session = s
		m.attached(g, hello)
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Receive hands in a message that arrived on s.
func (m *Machine) Receive(s *Session, r *restartv1.AttachRequest) {
	m.post(func() {
		if s.g.session != s || !s.g.live {
			return
		}
		switch msg := r.GetMessage().(type) {
		case *restartv1.AttachRequest_Ready:
			m.ready(s.g, msg.Ready.GetSnapshotId())
		case *restartv1.AttachRequest_Report:
			m.report(s.g, msg.Report)
		}
	})
}

// Detach ends s. The generation goes on as it is.
func (m *Machine) Detach(s *Session) {
	m.post(func() {
		s.end()
		if s.g.session == s {
			s.g.session = nil
		}
	})
}
