package listener

import (
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/timer"
)

// restTime is how long a socket rests that could not be accepted from for want of a descriptor or memory. The kernel goes on to
// queue connections; asking again at once would spin.
const restTime = int64(50 * time.Millisecond)

// Reserve is one spare descriptor of a worker. Without it a process that has run out of descriptors could not even take a
// connection to refuse it, and the client would wait.
type Reserve struct {
	poller poller.Poller
	fd     int32 // -1: none
}

// NewReserve opens the spare descriptor.
func NewReserve(p poller.Poller) *Reserve {
	r := &Reserve{poller: p}
	r.open()
	return r
}

func (r *Reserve) open() {
	fd, errno := r.poller.Spare()
	if errno != 0 {
		fd = -1
	}
	r.fd = fd
}

// shed takes one connection with the spare descriptor and closes it: the client is refused at once instead of hanging, and the
// queue does not stand full. False: there is none, or no descriptor for it, and the socket rests.
func (s *socket) shed() bool {
	l := s.listener
	r := l.reserve
	if r.fd < 0 {
		if r.open(); r.fd < 0 {
			s.pause()
			return false
		}
	}
	l.worker.Poller.Close(r.fd)
	fd, errno := l.worker.Poller.Accept(s.fd, &s.peer)
	if errno == 0 {
		l.worker.Poller.Close(fd)
		*l.Counters.Shed++
	}
	r.open()
	switch errno {
	case 0:
		return true
	case unix.EAGAIN:
	default:
		s.pause()
	}
	return false
}

// pause lets the socket rest. A shared one is told of for as long as connections wait: it leaves the poller meanwhile.
func (s *socket) pause() {
	if s.shared {
		s.unregister()
	}
	s.resting = true
	w := s.listener.worker
	w.Timers.Set(&s.rest, w.Now()+restTime)
}

// unregister takes the socket off the poller, unless its rest has.
func (s *socket) unregister() {
	if s.resting && s.shared {
		return
	}
	w := s.listener.worker
	w.Poller.Remove(s.fd)
	w.Forget(s.token)
}

// OnTimer implements timer.Callback: the rest is over.
func (s *socket) OnTimer(*timer.Timer, int64) {
	w := s.listener.worker
	if s.shared {
		token, errno := w.Register(s.fd, s, true)
		if errno != 0 {
			w.Timers.Set(&s.rest, w.Now()+restTime)
			return
		}
		s.token = token
	}
	s.resting = false
	s.accept()
}
