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
	won     int                // index of the address that connected last
	until   int64              // ns: how long that one goes first
	one     [1]*poller.Address // backs targets of a host with one address
}

// preferWinner is how long the address that won a race goes first in the next ones: whoever connects to a name with a family that does
// not work pays the delay once, not each time (RFC 8305 section 3.1 and 5; ten minutes are RFC 6555's).
const preferWinner = int64(10 * time.Minute)

// dial connects to the host: for a logical one to the first of its addresses that answers.
func (h *host) dial(handler conn.Handler, o *conn.Options) *conn.Conn {
	m, w := h.pool.manager, &h.where
	w.look(h)
	first := 0
	if w.won > 0 && m.worker.Now() < w.until {
		first = w.won
	}
	return conn.DialAny(m.worker, w.targets, first, m.nextID(), handler, o)
}

// look makes the targets where they are not those of the host's addresses now.
func (w *where) look(h *host) {
	places := h.host.Places()
	if w.targets != nil && w.places == places {
		return
	}
	*w = where{places: places}
	w.targets = w.one[:0]
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

// reached remembers which address answered.
func (h *host) reached(c *conn.Conn) {
	w := &h.where
	if len(w.targets) < 2 {
		return
	}
	for i, t := range w.targets {
		if now := c.Worker().Now(); t == c.Address() && (i != w.won || now >= w.until) {
			w.won, w.until = i, now+preferWinner
		}
	}
}
