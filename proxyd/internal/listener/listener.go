// Package listener accepts connections of one listener on one worker and brings them to the network filter of their filter
// chain: listener filters, match of a chain, transport, network filter.
//
// Life: main posts a Listener with its adopted sockets to a worker; Start registers them when the generation is told to
// serve, Stop takes them off the poller without closing them (another process may accept from the same sockets), Close
// gives this process's copies back. The sockets themselves are restartd's.
package listener

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/clienthello"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
)

const (
	// acceptBatch is how many connections one socket may give in a turn.
	acceptBatch = 64
)

// Filter is the network filter of a filter chain on a worker.
type Filter interface {
	// Accept takes over a connection whose transport is ready: it becomes the handler, and calls Gone from OnClose.
	Accept(c *conn.Conn, l *Listener)
}

// Limit counts connections over all workers: each adds to its own cell, admission adds them up, so a limit may be
// exceeded by less than the number of workers.
type Limit struct {
	Max   uint64 // 0: none
	Cells []*uint64
}

// Full tells that there is no room for one more.
func (l *Limit) Full() bool { return l.Max > 0 && l.sum() >= l.Max }

// Tight tells that nineteen of twenty places are taken. Responses then end their connections, so that idle ones make room
// before any has to be refused.
func (l *Limit) Tight() bool { return l.Max > 0 && l.sum() >= l.Max-l.Max/20 }

func (l *Limit) sum() (sum uint64) {
	for _, cell := range l.Cells {
		sum += atomic.LoadUint64(cell)
	}
	return sum
}

// Tight tells that one of the limits that hold for the listener is.
func (l *Listener) Tight() bool { return l.Own.Tight() || l.Global != nil && l.Global.Tight() }

// Counters are cells that the listener counts in; all are set.
type Counters struct {
	Total, Active, Overflow, GlobalOverflow, Shed *uint64
	NoMatch, PreTimeout, ProxyRefused             *uint64
	OverloadReject                                *uint64
	// Worker counts the open connections of all listeners of the worker: what Global limits.
	Worker *uint64
}

// Socket is one adopted listening socket.
type Socket struct {
	FD     int32
	Shared bool // other workers and processes poll it too
	// SecondHalf tells the half that the socket is of, while two generations accept from one each.
	SecondHalf bool
}

// Part is which of its sockets a listener accepts from.
type Part uint8

// The parts. A shared socket is of the first half.
const (
	All Part = iota
	FirstHalf
	SecondHalf
)

// Listener is one listener on one worker.
type Listener struct {
	Name string
	// Chains is where connections go. The worker may change it between two connections.
	Chains   *Chains
	Own      Limit // of this listener
	Global   *Limit
	Overload *overload.Levels // how far the process defends itself now; nil: not at all
	Counters Counters
	Options  conn.Options // of accepted connections
	// NextID numbers connections.
	NextID func() uint64

	worker  *worker.Worker
	sockets []*socket
	reserve *Reserve
	hello   clienthello.Hello // scratch
}

type socket struct {
	listener *Listener
	fd       int32
	shared   bool
	second   bool // of the second half
	token    uint64
	added    bool // to the poller, or resting
	resting  bool // nothing is accepted until rest fires
	rest     timer.Timer
	peer     unix.RawSockaddrAny
	again    worker.Task
}

// New makes a listener over adopted sockets. It refuses what is not a non-blocking listening socket: a blocking accept
// would stop the worker.
func New(w *worker.Worker, name string, sockets []Socket, reserve *Reserve) (*Listener, error) {
	l := &Listener{Name: name, worker: w, reserve: reserve}
	for _, s := range sockets {
		if err := l.add(s); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *Listener) add(s Socket) error {
	flags, err := unix.FcntlInt(uintptr(s.FD), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("listener %q: descriptor %d: %w", l.Name, s.FD, err)
	}
	if flags&unix.O_NONBLOCK == 0 {
		return fmt.Errorf("listener %q: descriptor %d is blocking: somebody cleared O_NONBLOCK on the shared socket", l.Name, s.FD)
	}
	if listening, err := unix.GetsockoptInt(int(s.FD), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listening == 0 {
		return fmt.Errorf("listener %q: descriptor %d is not a listening socket", l.Name, s.FD)
	}
	sock := &socket{listener: l, fd: s.FD, shared: s.Shared, second: s.SecondHalf}
	sock.again.Runner, sock.rest.Callback = sock, sock
	l.sockets = append(l.sockets, sock)
	return nil
}

// Renew takes copies of the sockets as restartd has them by now: what is new is added, not yet accepted from, of the rest the half is
// noted and the copy closed. On an error what is left of the copies is closed too.
func (l *Listener) Renew(sockets []Socket) (err error) {
	have := map[uint64]*socket{}
	for _, s := range l.sockets {
		have[inode(s.fd)] = s
	}
	for _, s := range sockets {
		known := have[inode(s.FD)]
		if known == nil && err == nil {
			if err = l.add(s); err == nil {
				continue
			}
		}
		if known != nil {
			known.second = s.SecondHalf
		}
		l.worker.Poller.Close(s.FD)
	}
	return err
}

// Start accepts from a part of the sockets, and from no other.
func (l *Listener) Start(part Part) error {
	for _, s := range l.sockets {
		if part != All && s.second != (part == SecondHalf) {
			s.stop()
			continue
		}
		if s.added {
			continue
		}
		token, errno := l.worker.Register(s.fd, s, s.shared)
		if errno != 0 {
			return fmt.Errorf("listener %q: epoll: %w", l.Name, errno)
		}
		s.token, s.added = token, true
		l.worker.Soon(&s.again) // what queued up before the registration
	}
	return nil
}

// Stop ceases to accept; the sockets stay open.
func (l *Listener) Stop() {
	for _, s := range l.sockets {
		s.stop()
	}
}

func (s *socket) stop() {
	if s.added {
		s.unregister()
		s.added, s.resting = false, false
		s.listener.worker.Timers.Stop(&s.rest)
	}
}

// Close stops and gives the descriptors back.
func (l *Listener) Close() {
	l.Stop()
	for _, s := range l.sockets {
		l.worker.Poller.Close(s.fd)
	}
	l.sockets = nil
}

// CloseShared gives back the descriptors of sockets that another listener has copies of.
func (l *Listener) CloseShared(other *Listener) {
	theirs := map[uint64]bool{}
	for _, s := range other.sockets {
		theirs[inode(s.fd)] = true
	}
	kept := l.sockets[:0]
	for _, s := range l.sockets {
		if !theirs[inode(s.fd)] {
			kept = append(kept, s)
			continue
		}
		s.stop()
		l.worker.Poller.Close(s.fd)
	}
	l.sockets = kept
}

// inode is the same for all copies of a socket.
func inode(fd int32) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return 0
	}
	return st.Ino
}

// Sockets are the descriptors that the listener accepts from.
func (l *Listener) Sockets() []Socket {
	var out []Socket
	for _, s := range l.sockets {
		out = append(out, Socket{s.fd, s.shared, s.second})
	}
	return out
}

// OnEvents implements worker.Source.
func (s *socket) OnEvents(uint32) { s.accept() }

// RunTask implements worker.Runner: it goes on where the last turn stopped.
func (s *socket) RunTask() { s.accept() }

func (s *socket) accept() {
	l := s.listener
	for range acceptBatch {
		if !s.added || s.resting {
			return
		}
		if !l.reserve.restore() { // before anything else gets what was closed
			s.pause()
			return
		}
		fd, errno := l.worker.Poller.Accept(s.fd, &s.peer)
		switch errno {
		case 0:
			if l.reserve.anyLacks() {
				l.refuse(fd)
				continue
			}
			l.admit(fd, &s.peer)
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO, unix.EPERM:
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			if !s.shed() {
				return
			}
		default:
			s.pause()
			return
		}
	}
	l.worker.Soon(&s.again) // an edge is not repeated
}

func (l *Listener) admit(fd int32, peer *unix.RawSockaddrAny) {
	if l.Own.Full() {
		*l.Counters.Overflow++
		l.worker.Poller.Close(fd)
		return
	}
	if l.Global != nil && l.Global.Full() {
		*l.Counters.GlobalOverflow++
		l.worker.Poller.Close(fd)
		return
	}
	if o := l.Overload; o != nil && o[overload.RejectConnections] > 0 && o.Draw(overload.RejectConnections, l.worker.Rand()) {
		*l.Counters.OverloadReject++
		l.worker.Poller.Close(fd)
		return
	}
	*l.Counters.Total++
	*l.Counters.Active++
	*l.Counters.Worker++
	c, errno := conn.Accept(l.worker, fd, poller.IP(peer), l.NextID(), nil, &l.Options)
	if errno != 0 {
		l.Gone()
		return
	}
	l.Chains.accept(c, l)
}

// shorten is a time-out of a connection that nobody has yet, as overload leaves it. 0 stays 0, which is none.
func (l *Listener) shorten(timeout time.Duration) time.Duration {
	if l.Overload == nil || timeout <= 0 {
		return timeout
	}
	return max(time.Duration(l.Overload.Shorten(int64(timeout))), 1)
}

// Gone counts a connection out. Its filter calls it from OnClose, or when another process has it.
func (l *Listener) Gone() {
	*l.Counters.Active--
	*l.Counters.Worker--
}

// Adopted counts a connection in that another process had accepted.
func (l *Listener) Adopted() {
	*l.Counters.Active++
	*l.Counters.Worker++
}
