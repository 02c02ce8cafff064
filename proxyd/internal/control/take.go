package control

import (
	"errors"
	"fmt"

	"retinue.dev/libs/fdpass"
	"retinue.dev/proxyd/internal/handoff"
	"retinue.dev/proxyd/internal/hcm"
	"retinue.dev/proxyd/internal/parcel"
	"retinue.dev/proxyd/internal/snapshot"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// maxReason bounds what a giver is told of a refusal, so that an answer is one message.
const maxReason = 160

// listenForGivers opens the socket on which generations before this one give their connections. The caller closes it.
func (s *Server) listenForGivers() (*fdpass.Listener, error) {
	l, err := fdpass.Listen(s.env.Socket(fmt.Sprintf("proxyd-%d.handoff.sock", s.generation)))
	if err != nil {
		return nil, err
	}
	taker := &handoff.Taker{Generation: s.generation, Adopt: s.adopt, Log: s.env.Log}
	go taker.Serve(l)
	return l, nil
}

// adopt puts a parcel on the next worker in turn: the generation before may have had more or fewer.
func (s *Server) adopt(p *parcel.Parcel) handoff.Adoption {
	all := s.loops.all()
	l := all[int(s.turn.Add(1))%len(all)]
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	var adopted []parcel.Parked
	var out handoff.Adoption
	on := func(f func()) bool { return s.loops.one(l, f) }
	if !on(func() { adopted, out.Refused = l.adopt(p, current) }) {
		for i := range p.Connections {
			out.Refused = append(out.Refused, &handoffv1.Refusal{Connection: uint32(i), Reason: "this generation ends"})
		}
	}
	out.Release = func() {
		on(func() {
			for _, c := range adopted {
				c.Release()
			}
		})
	}
	out.Resume = func() {
		on(func() {
			for _, c := range adopted {
				c.Resume()
			}
		})
		s.taken.Add(uint64(len(adopted)))
	}
	return out
}

// adopt registers connections of another process, which lie still; the worker's thread.
func (l *loop) adopt(p *parcel.Parcel, current *snapshot.Snapshot) (adopted []parcel.Parked, refused []*handoffv1.Refusal) {
	for i, record := range p.Connections {
		c, err := l.adoptOne(p, record, current)
		if err != nil {
			reason := fmt.Sprintf("listener %q: %v", record.GetListener(), err)
			refused = append(refused, &handoffv1.Refusal{Connection: uint32(i), Reason: reason[:min(len(reason), maxReason)]})
			continue
		}
		adopted = append(adopted, c)
	}
	return adopted, refused
}

func (l *loop) adoptOne(p *parcel.Parcel, record *handoffv1.Connection, current *snapshot.Snapshot) (parcel.Parked, error) {
	b := l.listeners[record.GetListener()]
	if b == nil {
		return nil, errNoListener
	}
	switch f := b.filters[record.GetFilterChain()].(type) {
	case *tunnels:
		if t := record.GetTunnel(); t != nil {
			return f.Adopt(p, t, b.listener, current.Handle)
		}
	case *hcm.Filter:
		if h := record.GetHttp1(); h != nil {
			return f.Adopt(p, h, b.listener, current.Handle)
		}
	}
	return nil, errOtherProtocol
}

var (
	errNoListener    = errors.New("it is not in the snapshot")
	errOtherProtocol = errors.New("it speaks another protocol now")
)
