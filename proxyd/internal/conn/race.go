package conn

import (
	"time"

	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
)

const (
	// MaxAddresses is how many addresses a race tries.
	MaxAddresses = 16
	// raceDelay is how long an address has before the next one is tried beside it: Envoy's; RFC 8305 section 5 asks for 250 ms. It is
	// less where the time-out would leave no time for the last address, down to leastDelay, that section's minimum.
	raceDelay  = int64(300 * time.Millisecond)
	leastDelay = int64(10 * time.Millisecond)
	// keptRaces bounds the free list.
	keptRaces = 64
)

// race is the connects of one dialled connection to several addresses of its host (RFC 8305, Happy Eyeballs). They begin one
// after the other, when the one before has failed or has taken too long; the first that is there is the connection's, and the
// others are closed. The transport's handshake is not part of it.
type race struct {
	conn      *Conn
	addresses [MaxAddresses]*poller.Address // in the order of trying
	attempts  [MaxAddresses]attempt
	count     int
	next      int // to try
	running   int
	delay     int64 // ns
	timer     timer.Timer

	free *race
}

// attempt is one connect of a race.
type attempt struct {
	race    *race
	address *poller.Address
	token   uint64
	fd      int32 // -1: over
}

// DialAny is Dial to the first of several addresses that answers: at most MaxAddresses, tried in their order but for one that goes
// first, the first-th. The address list is not kept.
func DialAny(w *worker.Worker, addresses []*poller.Address, first int, id uint64, h Handler, o *Options) *Conn {
	if len(addresses) == 1 {
		return Dial(w, addresses[0], id, h, o)
	}
	c := newConn(w, h, o)
	c.id, c.connecting, c.fd, c.address = id, true, -1, addresses[first]
	r := w.Conns.(*spare).race()
	r.conn, c.race = c, r
	r.addresses[0], r.count = addresses[first], 1
	for i, a := range addresses {
		if i != first && r.count < MaxAddresses {
			r.addresses[r.count] = a
			r.count++
		}
	}
	r.delay = max(leastDelay, min(raceDelay, int64(o.connectTimeout())/int64(r.count+1)))
	if !r.begin() {
		r.end()
		w.Soon(&c.task)
		return c
	}
	c.begin(o)
	return c
}

func (s *spare) race() *race {
	r := s.races
	if r == nil {
		return &race{}
	}
	s.races, r.free = r.free, nil
	s.raceCount--
	return r
}

// begin tries the next address that can be. False: there is none left.
func (r *race) begin() bool {
	c := r.conn
	w := c.worker
	w.Timers.Stop(&r.timer)
	for r.next < r.count {
		a := &r.attempts[r.next]
		address := r.addresses[r.next]
		r.next++
		fd, errno := w.Poller.Connect(address)
		if errno == 0 {
			*a = attempt{race: r, address: address, fd: fd}
			if a.token, errno = w.Register(fd, a, false); errno != 0 {
				w.Poller.Close(fd)
				a.fd = -1
			}
		} else {
			a.fd = -1
		}
		if errno != 0 {
			c.Errno = errno
			continue
		}
		r.running++
		if r.next < r.count {
			r.timer.Callback = r
			w.Timers.Set(&r.timer, w.Now()+r.delay)
		}
		return true
	}
	return false
}

// OnTimer implements timer.Callback: the last address takes its time, so the next one runs beside it.
func (r *race) OnTimer(*timer.Timer, int64) { r.begin() }

// OnEvents implements worker.Source.
func (a *attempt) OnEvents(events uint32) {
	if events&(poller.Writable|poller.Failed|poller.HangUp) == 0 {
		return
	}
	r := a.race
	c := r.conn
	w := c.worker
	if errno := w.Poller.SocketError(a.fd); errno != 0 {
		r.drop(a)
		c.Errno = errno
		if !r.begin() && r.running == 0 {
			c.close(ConnectFailure)
		}
		return
	}
	c.fd, c.token, c.address, c.Errno = a.fd, a.token, a.address, 0
	w.Replace(a.token, c)
	a.fd = -1
	r.end()
	c.connected()
}

// drop ends an attempt.
func (r *race) drop(a *attempt) {
	w := r.conn.worker
	w.Forget(a.token)
	w.Poller.Close(a.fd)
	a.fd = -1
	r.running--
}

// end ends the race, and with it the attempts that are still under way.
func (r *race) end() {
	c := r.conn
	c.worker.Timers.Stop(&r.timer)
	for i := range r.attempts[:r.next] {
		if a := &r.attempts[i]; a.fd >= 0 {
			r.drop(a)
		}
	}
	c.race = nil
	list := c.worker.Conns.(*spare)
	*r = race{}
	if list.raceCount < keptRaces {
		r.free = list.races
		list.races = r
		list.raceCount++
	}
}
