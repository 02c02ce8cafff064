package plugin

import (
	"errors"
	"io"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Plugins, and the work of starting one, yield to the rest of the suite where processors are short. Three things are needed:
//
// A long time slice. A thread that wakes up takes the processor from one that has a longer slice than itself (EEVDF, Linux 6.12 and later: sched_setattr(2),
// 0.1 to 100 ms, inherited, a group's is the shortest of its threads'). With equal slices the running one goes on until its own is over, and the
// kernel looks at that once a tick: a plugin that fills its memory held up proxyd's worker for up to 4 ms at a time, whatever its weight was.
// A slice is no share, and older kernels take it and do nothing with it. SCHED_IDLE is no substitute: between groups of sessions it changes nothing but where
// the kernel puts what wakes up, namely onto the plugin's processor.
//
// A small weight of the session's group (sched(7), autogroup): each session has the same otherwise. It is smaller once the plugin serves: a
// start may take what it needs within the time of the handshake.
//
// A small weight of the threads themselves: it holds where there are no such groups (in a container), for the work of restartd, and for a thread that ends. That leaves
// the group before it gives its memory back, which takes tens of milliseconds when it was much.
const (
	yieldingSlice = 100 * time.Millisecond // the longest there is
	startingNice  = 10                     // a weight of 110 beside 1024
	servingNice   = 19                     // 15
	weighAgain    = 150 * time.Millisecond // the kernel lets users without privileges change one group in 100 ms
)

// yield makes the calling thread yield, and what it starts from then on.
func yield() {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil || a.Policy != unix.SCHED_NORMAL && a.Policy != unix.SCHED_BATCH {
		return // somebody chose another class
	}
	a.Nice, a.Runtime = max(a.Nice, startingNice), uint64(yieldingSlice.Nanoseconds())
	_ = unix.SchedSetAttr(0, a, 0)
}

// aside runs f on a thread that yields and that ends with it: without privileges none can go back to what it was. What f starts yields too.
func aside(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread does not end, and its priority is shown as the process's
			aside(f)
			runtime.UnlockOSThread()
			return
		}
		yield()
		f()
	}()
	<-done
}

// weigh sets the weight of the group of the process's session, at its start and once it serves. The group's file is the process's, whoever has its number later.
func (p *process) weigh(group io.WriteCloser, settled <-chan struct{}) {
	defer group.Close()
	for _, nice := range []int{startingNice, servingNice} {
		for {
			_, err := io.WriteString(group, strconv.Itoa(nice))
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EAGAIN) {
				return
			}
			select {
			case <-p.gone:
				return
			case <-time.After(weighAgain):
			}
		}
		select {
		case <-settled:
		case <-p.gone:
			return
		}
	}
}
