package upstream

import (
	"net/netip"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/poller"
)

// where is the addresses of a host in one worker.
type where struct {
	targets []*poller.Address  // made at the first connect
	places  *[]netip.AddrPort  // of a logical host: what targets were made of
	one     [1]*poller.Address // backs targets of a host with one address

	winner *poller.Address // that connected where the one to try first did not; nil: none
	until  int64           // ns: how long it goes first
}

// preferWinner is how long the address that won a race against the first goes first in the next ones: whoever connects to a name with
// a family that does not work pays the delay once, not each time (RFC 8305 section 3.1 and 5; ten minutes are RFC 6555's).
const preferWinner = int64(10 * time.Minute)

// dial connects to the host: for a logical one to the first of its addresses that answers.
func (h *host) dial(handler conn.Handler, o *conn.Options) *conn.Conn {
	m, w := h.pool.manager, &h.where
	w.look(h)
	return conn.DialAny(m.worker, w.targets, w.first(m.worker.Now()), m.nextID(), handler, o)
}

// look makes the targets where they are not those of the host's addresses now.
func (w *where) look(h *host) {
	places := h.host.Places()
	if w.targets != nil && w.places == places {
		return
	}
	w.places, w.targets = places, w.one[:0]
	switch {
	case h.host.Path != "":
		w.targets = append(w.targets, poller.NewUnix(h.host.Path))
	case places == nil:
		w.targets = append(w.targets, poller.NewTCP(h.host.IP))
	default:
		for _, p := range *places {
			w.targets = append(w.targets, poller.NewTCP(p))
		}
	}
}

// first is the index of the target to try first: the last winner, or where the name has it no longer one of its family. Name servers
// that turn their records round say nothing about what works.
func (w *where) first(now int64) int {
	if w.winner == nil || now >= w.until {
		return 0
	}
	kin := 0
	for i, t := range w.targets {
		switch {
		case t.Text == w.winner.Text:
			return i
		case t.Family == w.winner.Family && w.targets[kin].Family != t.Family:
			kin = i
		}
	}
	return kin
}

// reached remembers which address answered.
func (h *host) reached(c *conn.Conn) {
	w, now := &h.where, c.Worker().Now()
	if len(w.targets) < 2 || c.Address() == w.targets[w.first(now)] {
		return
	}
	if c.Address() == w.targets[0] {
		w.winner = nil
		return
	}
	w.winner, w.until = c.Address(), now+preferWinner
}
