package listener

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/timer"
)

// restTime is how long a socket rests that could not be accepted from for want of a descriptor or memory. The kernel goes on to
// queue connections; asking again at once would spin.
const restTime = int64(50 * time.Millisecond)

// Lacking counts the workers whose spare descriptor is not there. They share it: a descriptor that one worker has let go to refuse a
// client may be taken by another one for a connection that stays, and then the first could refuse nobody for as long as it stays. So
// while somebody lacks a spare, nobody keeps a new connection.
type Lacking struct{ workers atomic.Int32 }

// Reserve is one spare descriptor of a worker. Without it a process that has run out of descriptors could not even take a
// connection to refuse it, and the client would wait.
type Reserve struct {
	poller  poller.Poller
	fd      int32 // -1: none
	lacking *Lacking
}

// NewReserve opens the spare descriptor. lacking is one for all workers of the process.
func NewReserve(p poller.Poller, lacking *Lacking) *Reserve {
	r := &Reserve{poller: p, fd: -1, lacking: lacking}
	lacking.workers.Add(1)
	r.restore()
	return r
}

// restore opens the spare descriptor unless it is there, and tells whether it is.
func (r *Reserve) restore() bool {
	if r.fd >= 0 {
		return true
	}
	fd, errno := r.poller.Spare()
	if errno != 0 {
		return false
	}
	r.fd = fd
	r.lacking.workers.Add(-1)
	return true
}

// release closes the spare descriptor: there is one for something else.
func (r *Reserve) release() {
	r.lacking.workers.Add(1)
	r.poller.Close(r.fd)
	r.fd = -1
}

// anyLacks tells that some worker has no spare descriptor.
func (r *Reserve) anyLacks() bool { return r.lacking.workers.Load() > 0 }

// shed takes one connection with the spare descriptor and closes it: the client is refused at once instead of hanging, and the
// queue does not stand full. False: none waited, or there was no descriptor for it, and the socket rests.
func (s *socket) shed() bool {
	l := s.listener
	l.reserve.release()
	fd, errno := l.worker.Poller.Accept(s.fd, &s.peer)
	if errno == 0 {
		l.refuse(fd)
	}
	l.reserve.restore()
	switch errno {
	case 0:
		return true
	case unix.EAGAIN:
	default:
		s.pause()
	}
	return false
}

// refuse closes a connection for want of descriptors.
func (l *Listener) refuse(fd int32) {
	l.worker.Poller.Close(fd)
	*l.Counters.Shed++
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
