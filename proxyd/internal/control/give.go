package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"retinue.dev/proxyd/internal/handoff"
	"retinue.dev/proxyd/internal/parcel"
)

const (
	// giveEvery is how often a draining generation looks for what can move by now without having been told.
	giveEvery = 100 * time.Millisecond
	// givePatience is how long the successor may be out of reach before connections are drained the ordinary way.
	givePatience = 5 * time.Second
)

var errGone = errors.New("the successor has gone")

// giving moves live connections to one successor, a goroutine for each worker. Life: begin, stop.
type giving struct {
	server    *Server
	successor uint64
	cancel    context.CancelFunc
	all       sync.WaitGroup
	moved     *atomic.Uint64
}

// give begins to hand over; with ops held.
func (s *Server) give(successor uint64) {
	if s.giving != nil && s.giving.successor == successor {
		return
	}
	s.stopGiving()
	if successor == 0 || successor == s.generation {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := &giving{server: s, successor: successor, cancel: cancel, moved: &s.moved}
	s.giving = g
	for _, l := range s.loops.all() {
		more := make(chan struct{}, 1)
		g.on(l, func() {
			l.handOver(func() { // on the worker, at the end of a response: it never waits
				select {
				case more <- struct{}{}:
				default:
				}
			})
		})
		g.all.Go(func() { g.loop(ctx, l, more) })
	}
}

// stopGiving returns when no connection is on its way; with ops held.
func (s *Server) stopGiving() {
	if s.giving != nil {
		s.giving.cancel()
		s.giving.all.Wait()
		s.giving = nil
	}
}

// loop hands one worker's connections over until it is cancelled, or the successor has been away for too long.
func (g *giving) loop(ctx context.Context, l *loop, more chan struct{}) {
	log := g.server.env.Log
	defer g.on(l, func() { l.handOver(nil) })
	path := g.server.env.Socket(fmt.Sprintf("proxyd-%d.handoff.sock", g.successor))
	lastGood, pause := time.Now(), firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := g.converse(ctx, l, path, more)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Second {
			lastGood, pause = time.Now(), firstPause
		}
		log.Debug("connections are not handed over", "successor", g.successor, "worker", l.ID, "error", err)
		if time.Since(lastGood) > givePatience {
			log.Warn("the successor takes no connections; they end here", "successor", g.successor, "worker", l.ID, "error", err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// converse gives parcel after parcel until the conversation fails or ctx is done.
func (g *giving) converse(ctx context.Context, l *loop, path string, more <-chan struct{}) error {
	giver, err := handoff.Dial(path, g.server.generation)
	if err != nil {
		return err
	}
	defer giver.Close()
	for {
		var p *parcel.Parcel
		if !g.on(l, func() { p = l.pack() }) {
			return context.Canceled
		}
		if len(p.Connections) == 0 {
			if giver.Gone() {
				return errGone
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-more:
			case <-time.After(giveEvery):
			}
			continue
		}
		if err := giver.Give(p, func(out handoff.Outcome) { g.settle(l, p, out) }); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (g *giving) settle(l *loop, p *parcel.Parcel, out handoff.Outcome) {
	taken := 0
	g.on(l, func() {
		for i, c := range p.Parked {
			if out.Taken[i] {
				taken++
				c.Release()
			} else {
				c.Unpark(out.Accepted)
			}
		}
		l.forget()
	})
	g.moved.Add(uint64(taken))
	if len(out.Reasons) > 0 {
		g.server.env.Log.Warn("the successor refused connections; they end here", "successor", g.successor, "count", len(out.Reasons), "first", out.Reasons[0])
	}
}

// on runs f on the worker and waits; false after the workers' end.
func (g *giving) on(l *loop, f func()) bool { return g.server.loops.one(l, f) }

// handOver tells the filters of listeners that stay that their connections go to another process; nil: not any more.
func (l *loop) handOver(more func()) {
	for _, b := range l.listeners {
		for _, f := range b.filters {
			f.HandOver(more)
		}
	}
}

// pack parks what can move now, as much as a parcel holds. What a listener left behind that went ends here: the successor
// does not know it.
func (l *loop) pack() *parcel.Parcel {
	p := &parcel.Parcel{}
	for listener, b := range l.listeners {
		for chain, f := range b.filters {
			if !p.Room() {
				return p
			}
			from := len(p.Connections)
			f.Pack(p)
			for _, c := range p.Connections[from:] {
				c.Listener, c.FilterChain = listener, chain
			}
		}
	}
	return p
}
