package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The load and the upstream are loops over epoll on threads of their own: a goroutine's timer is late by up to a millisecond, which makes
// bursts of what should be a stream, and a burst multiplies whatever a call costs.

// request is what a connection sends, answer what the upstream answers with; answers end as end does.
const (
	request = "GET %s HTTP/1.1\r\nHost: a\r\nx-do: cache-it\r\n\r\n"
	answer  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	end     = "\r\n\r\nok"
)

// loop waits for events of descriptors.
type loop struct {
	fd     int
	events [128]unix.EpollEvent
}

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &loop{fd: fd}, err
}

func (l *loop) add(fd int) error {
	return unix.EpollCtl(l.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// wait waits for events, at most that long; the scheduler does not see it, so nothing but the kernel makes it late.
func (l *loop) wait(most time.Duration) []unix.EpollEvent {
	timeout := unix.NsecToTimespec(max(most, 0).Nanoseconds())
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.fd), uintptr(unsafe.Pointer(&l.events)), uintptr(len(l.events)),
		uintptr(unsafe.Pointer(&timeout)), 0, 0)
	if errno != 0 {
		runtime.Gosched() // EINTR: the runtime wants the thread
		return nil
	}
	return l.events[:n]
}

// upstream answers every request with the same bytes.
func upstream() (string, error) {
	l, err := newLoop()
	if err != nil {
		return "", err
	}
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(listener, 128), l.add(listener)); err != nil {
		return "", err
	}
	at, err := unix.Getsockname(listener)
	if err != nil {
		return "", err
	}
	ready := make(chan error)
	go func() {
		err := lockThread()
		ready <- err
		if err != nil {
			return
		}
		b := make([]byte, 8<<10)
		for {
			for _, e := range l.wait(10 * time.Millisecond) {
				fd := int(e.Fd)
				if fd == listener {
					if c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); err == nil {
						_ = l.add(c)
					}
					continue
				}
				n, err := raw(unix.SYS_READ, fd, b)
				if err == 0 && n > 0 {
					_, err = raw(unix.SYS_WRITE, fd, []byte(answer))
				}
				if err != 0 && err != unix.EAGAIN || n == 0 {
					_ = unix.Close(fd)
				}
			}
		}
	}()
	if err := <-ready; err != nil {
		return "", err
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port), nil
}

// lockThread locks the goroutine to its thread and, with -urgent, has that thread run before all others.
func lockThread() error {
	runtime.LockOSThread()
	if !*urgent {
		return nil
	}
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_RR, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0); err != nil {
		return fmt.Errorf("-urgent: %w", err)
	}
	return nil
}

// unlockThread undoes lockThread.
func unlockThread() {
	if *urgent {
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_NORMAL}, 0)
	}
	runtime.UnlockOSThread()
}

// urgency is what -urgent adds to a heading.
func urgency() string {
	if *urgent {
		return ", load and upstream with real-time priority"
	}
	return ""
}

// raw is a read or a write that cannot block, past the scheduler.
func raw(call uintptr, fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

// load is connections that send one request.
type load struct {
	*loop
	request []byte
	conns   map[int32]*client
	free    []*client
}

type client struct {
	fd  int
	due time.Time
	got []byte
}

func newLoad(address, path string, connections int) (*load, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	l := &load{request: fmt.Appendf(nil, request, path), conns: map[int32]*client{}}
	if l.loop, err = newLoop(); err != nil {
		return nil, err
	}
	for range connections {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		c := &client{fd: fd}
		l.conns[int32(fd)], l.free = c, append(l.free, c)
		if err := errors.Join(unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetNonblock(fd, true), l.add(fd)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *load) close() {
	for _, c := range l.conns {
		_ = unix.Close(c.fd)
	}
	_ = unix.Close(l.fd)
}

func (l *load) send(c *client, due time.Time) error {
	c.due, c.got = due, c.got[:0]
	if _, errno := raw(unix.SYS_WRITE, c.fd, l.request); errno != 0 {
		return fmt.Errorf("send: %w", errno)
	}
	return nil
}

// receive calls done for each connection whose answer is whole.
func (l *load) receive(most time.Duration, done func(*client) error) error {
	for _, e := range l.wait(most) {
		c := l.conns[e.Fd]
		if cap(c.got)-len(c.got) < 4<<10 {
			c.got = append(make([]byte, 0, 8<<10), c.got...)
		}
		n, errno := raw(unix.SYS_READ, c.fd, c.got[len(c.got):cap(c.got)])
		if errno != 0 || n == 0 {
			return fmt.Errorf("receive: %w, %d bytes", errno, n)
		}
		if c.got = c.got[:len(c.got)+n]; bytes.HasSuffix(c.got, []byte(end)) {
			if !bytes.HasPrefix(c.got, []byte("HTTP/1.1 200 ")) {
				return fmt.Errorf("it was answered %q", c.got)
			}
			if err := done(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// hammer has every connection send its next request as soon as it was answered.
func hammer(address, path string) (requests int, took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l, err := newLoad(address, path, 64)
	if err != nil {
		return 0, 0, err
	}
	defer l.close()
	began := time.Now()
	for _, c := range l.free {
		if err := l.send(c, began); err != nil {
			return 0, 0, err
		}
	}
	for time.Since(began) < *slice {
		err := l.receive(time.Millisecond, func(c *client) error {
			requests++
			return l.send(c, began)
		})
		if err != nil {
			return 0, 0, err
		}
	}
	return requests, time.Since(began), nil
}

// paced sends requests at a rate and returns the µs from when each was due to its answer.
func paced(address, path string) ([]float64, error) {
	if err := lockThread(); err != nil {
		return nil, err
	}
	defer unlockThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	l, err := newLoad(address, path, 64)
	if err != nil {
		return nil, err
	}
	defer l.close()
	n := int(float64(*rate) * slice.Seconds())
	gap := time.Second / time.Duration(*rate)
	times := make([]float64, 0, n)
	next := time.Now().Add(time.Millisecond)
	for sent := 0; len(times) < n; {
		for sent < n && len(l.free) > 0 && time.Until(next) <= 0 {
			c := l.free[len(l.free)-1]
			l.free = l.free[:len(l.free)-1]
			if err := l.send(c, next); err != nil {
				return nil, err
			}
			next = next.Add(gap)
			sent++
		}
		most := 10 * time.Millisecond
		if sent < n && len(l.free) > 0 {
			most = time.Until(next)
		}
		err := l.receive(most, func(c *client) error {
			times = append(times, float64(time.Since(c.due).Nanoseconds())/1e3)
			l.free = append(l.free, c)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return times, nil
}
