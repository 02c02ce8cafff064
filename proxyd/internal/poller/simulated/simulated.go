// Package simulated is the poller over a network and a clock that a test drives step by step: nothing happens unless the
// test makes it happen, and everything happens in the same order each time.
//
// A Network is the kernel of one worker. Sockets of the worker are descriptors; the far end of each is a Peer, which the test
// holds: it sends, reads, closes, resets, and says how much it takes. Edges are as in epoll: told once, when something changes.
package simulated

import (
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
)

// Network implements poller.Poller. One goroutine uses it, but for Wake.
type Network struct {
	// MaxFD is the number of descriptors there may be; beyond it EMFILE.
	MaxFD int
	// PipeSize is the bytes of a pipe.
	PipeSize int
	// Room is what a new socket takes before it is full, in bytes.
	Room int
	// Calls counts system calls by name.
	Calls map[string]int

	now, wall int64
	files     []*file // by descriptor; nil is free
	ready     []*file
	services  map[string]*Service
	woken     atomic.Bool
}

type kind uint8

const (
	socket kind = iota
	listening
	pipeRead
	pipeWrite
	spare
)

// file is an open descriptor.
type file struct {
	fd         int32
	kind       kind
	peer       *Peer
	backlog    *Backlog
	pipe       *pipe
	registered bool
	shared     bool
	queued     bool
	token      uint64
}

type pipe struct {
	bytes        []byte
	size         int
	readers, end int
}

// New makes a network whose clock stands at an hour.
func New() *Network {
	return &Network{
		MaxFD: 1024, PipeSize: 1 << 20, Room: 1 << 20, Calls: map[string]int{},
		now: 3600e9, wall: 1_700_000_000e9, services: map[string]*Service{},
	}
}

// Advance moves the clocks by ns.
func (n *Network) Advance(ns int64) { n.now += ns; n.wall += ns }

// Open is how many descriptors are open.
func (n *Network) Open() (count int) {
	for _, f := range n.files {
		if f != nil {
			count++
		}
	}
	return count
}

func (n *Network) open(k kind) (*file, poller.Errno) {
	at := -1
	for i, f := range n.files {
		if f == nil {
			at = i
			break
		}
	}
	if at < 0 {
		if len(n.files) >= n.MaxFD {
			return nil, unix.EMFILE
		}
		at = len(n.files)
		n.files = append(n.files, nil)
	} else if at >= n.MaxFD {
		return nil, unix.EMFILE
	}
	f := &file{fd: int32(at), kind: k}
	n.files[at] = f
	return f, 0
}

func (n *Network) file(fd int32) *file {
	if fd < 0 || int(fd) >= len(n.files) {
		return nil
	}
	return n.files[fd]
}

// edge tells that something changed about a descriptor.
func (n *Network) edge(f *file) {
	if f.registered && !f.queued && n.file(f.fd) == f {
		f.queued = true
		n.ready = append(n.ready, f)
	}
}

// Add implements poller.Poller.
func (n *Network) Add(fd int32, token uint64, shared bool) poller.Errno {
	f := n.file(fd)
	switch {
	case f == nil:
		return unix.EBADF
	case f.registered:
		return unix.EEXIST
	}
	f.registered, f.shared, f.token = true, shared, token
	if f.mask() != 0 {
		n.edge(f)
	}
	return 0
}

// Remove implements poller.Poller.
func (n *Network) Remove(fd int32) poller.Errno {
	f := n.file(fd)
	switch {
	case f == nil:
		return unix.EBADF
	case !f.registered:
		return unix.ENOENT
	}
	n.unregister(f)
	return 0
}

func (n *Network) unregister(f *file) {
	f.registered = false
	if !f.queued {
		return
	}
	f.queued = false
	for i, r := range n.ready {
		if r == f {
			n.ready = append(n.ready[:i], n.ready[i+1:]...)
			return
		}
	}
}

// mask is what is true of a descriptor now.
func (f *file) mask() uint32 {
	switch f.kind {
	case listening:
		if len(f.backlog.queue) > 0 {
			return poller.Readable
		}
		return 0
	case socket:
		return f.peer.mask()
	}
	return 0
}

// Wait implements poller.Poller. It never blocks: a test moves the clock.
func (n *Network) Wait(events []poller.Event, _ int64, _ bool) int {
	n.Calls["wait"]++
	n.woken.Store(false)
	count, kept := 0, n.ready[:0]
	for i, f := range n.ready {
		if count == len(events) {
			kept = append(kept, n.ready[i:]...)
			break
		}
		mask := f.mask()
		if f.shared {
			mask &= poller.Readable
		}
		if mask == 0 {
			f.queued = false
			continue
		}
		events[count] = poller.Event{Token: f.token, Events: mask}
		count++
		if f.shared { // listening sockets of several workers are level-triggered
			kept = append(kept, f)
			continue
		}
		f.queued = false
	}
	clear(n.ready[len(kept):])
	n.ready = kept
	return count
}

// Wake implements poller.Poller.
func (n *Network) Wake() { n.woken.Store(true) }

// Woken tells that Wake was called since the last Wait.
func (n *Network) Woken() bool { return n.woken.Load() }

// Now implements poller.Poller.
func (n *Network) Now() int64 { return n.now }

// Wall implements poller.Poller.
func (n *Network) Wall() int64 { return n.wall }

// Spare implements poller.Poller.
func (n *Network) Spare() (int32, poller.Errno) {
	f, errno := n.open(spare)
	if errno != 0 {
		return -1, errno
	}
	return f.fd, 0
}

// Pipe implements poller.Poller.
func (n *Network) Pipe() (read, write int32, size int, errno poller.Errno) {
	n.Calls["pipe"]++
	p := &pipe{size: n.PipeSize, readers: 1, end: 1}
	r, errno := n.open(pipeRead)
	if errno != 0 {
		return -1, -1, 0, errno
	}
	w, errno := n.open(pipeWrite)
	if errno != 0 {
		n.files[r.fd] = nil
		return -1, -1, 0, errno
	}
	r.pipe, w.pipe = p, p
	return r.fd, w.fd, p.size, 0
}

// Splice implements poller.Poller.
func (n *Network) Splice(from, to int32, most int) (int, poller.Errno) {
	n.Calls["splice"]++
	source, target := n.file(from), n.file(to)
	switch {
	case source == nil || target == nil:
		return -1, unix.EBADF
	case source.kind == socket && target.kind == pipeWrite:
		room := min(most, target.pipe.size-len(target.pipe.bytes))
		if room == 0 {
			return -1, unix.EAGAIN
		}
		buf := make([]byte, room)
		got, errno := source.peer.nearRead(buf)
		if errno == 0 {
			target.pipe.bytes = append(target.pipe.bytes, buf[:got]...)
		}
		return got, errno
	case source.kind == pipeRead && target.kind == socket:
		if len(source.pipe.bytes) == 0 {
			return -1, unix.EAGAIN
		}
		put, errno := target.peer.nearWrite(source.pipe.bytes[:min(most, len(source.pipe.bytes))])
		if errno == 0 {
			source.pipe.bytes = source.pipe.bytes[put:]
		}
		return put, errno
	}
	return -1, unix.EINVAL
}

// unlimited is the most that one call moves unless the test says less.
const unlimited = math.MaxInt
