// Package epoll is the poller over Linux epoll.
//
// Calls that do not block bypass the Go scheduler (RawSyscall): the thread keeps its processor, which is where a tenth
// of the cost of a request would go otherwise. A short wait is raw too; the runtime interrupts it with a signal when it
// needs the thread (EINTR), and the worker then yields. A long wait is an ordinary system call, so that the processor is free
// for others. Everything the kernel writes to is mapped memory: a goroutine's stack moves.
package epoll

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/poller"
)

const (
	maxEvents = 512
	maxPieces = 64
	wakeToken = ^uint64(0)
	// rawWait bounds a wait that the scheduler does not see.
	rawWait  = 5 * time.Millisecond
	pipeSize = 1 << 20
)

// Poller is one epoll instance. Make it with New on any thread; use it on one.
type Poller struct {
	fd, wake int32
	kernel   *kernel
}

// kernel is mapped memory that system calls read and write.
type kernel struct {
	events [maxEvents]event
	pieces [maxPieces]unix.Iovec
	value  [2]int32
	length uint32
	count  uint64
}

// New makes the epoll instance and the eventfd that wakes it.
func New() (*Poller, error) {
	memory, err := buffer.Map(int(unsafe.Sizeof(kernel{})))
	if err != nil {
		return nil, err
	}
	p := &Poller{kernel: (*kernel)(unsafe.Pointer(&memory[0]))}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	p.fd, p.wake = int32(fd), int32(wake)
	if errno := p.control(unix.EPOLL_CTL_ADD, p.wake, wakeToken, unix.EPOLLIN|unix.EPOLLET); errno != 0 {
		p.Destroy()
		return nil, fmt.Errorf("epoll_ctl of the eventfd: %w", errno)
	}
	return p, nil
}

// Destroy closes the instance, after the worker has ended.
func (p *Poller) Destroy() {
	_ = unix.Close(int(p.fd))
	_ = unix.Close(int(p.wake))
}

func (p *Poller) control(op int, fd int32, token uint64, events uint32) poller.Errno {
	e := &p.kernel.events[0]
	e.set(events, token)
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(e)), 0, 0)
	return errno
}

// Add registers a descriptor for its life.
func (p *Poller) Add(fd int32, token uint64, shared bool) poller.Errno {
	if shared {
		return p.control(unix.EPOLL_CTL_ADD, fd, token, unix.EPOLLIN|unix.EPOLLEXCLUSIVE)
	}
	return p.control(unix.EPOLL_CTL_ADD, fd, token, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET)
}

// Remove takes a descriptor off.
func (p *Poller) Remove(fd int32) poller.Errno {
	return p.control(unix.EPOLL_CTL_DEL, fd, 0, 0)
}

// Wait implements poller.Poller.
func (p *Poller) Wait(events []poller.Event, timeout int64, idle bool) int {
	most := min(len(events), maxEvents)
	var n uintptr
	var errno unix.Errno
	if idle {
		ms := (timeout + int64(time.Millisecond) - 1) / int64(time.Millisecond)
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_WAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.kernel.events)), uintptr(most), uintptr(min(ms, 1<<30)), 0, 0)
	} else {
		ms := (min(timeout, int64(rawWait)) + int64(time.Millisecond) - 1) / int64(time.Millisecond)
		n, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_WAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.kernel.events)), uintptr(most), uintptr(ms), 0, 0)
	}
	if errno != 0 {
		if errno == unix.EINTR {
			runtime.Gosched() // the runtime asks for the thread
		}
		return 0
	}
	filled := 0
	for i := range int(n) {
		mask, token := p.kernel.events[i].get()
		if token == wakeToken {
			_, _, _ = unix.RawSyscall(unix.SYS_READ, uintptr(p.wake), uintptr(unsafe.Pointer(&p.kernel.count)), 8)
			continue
		}
		events[filled] = poller.Event{Token: token, Events: mask}
		filled++
	}
	return filled
}

var one = uint64(1)

// Wake may be called from any thread.
func (p *Poller) Wake() {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(p.wake), uintptr(unsafe.Pointer(&one)), 8)
}

var started, startedAt = origin()

func origin() (time.Time, int64) {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Now(), now.Nano()
}

// Now is CLOCK_MONOTONIC in nanoseconds: the same for every process of the machine, so that times move with connections.
func (p *Poller) Now() int64 { return startedAt + int64(time.Since(started)) }

// Wall is nanoseconds since 1970.
func (p *Poller) Wall() int64 { return time.Now().UnixNano() }
