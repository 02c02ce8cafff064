package control

import (
	"sync"
	"sync/atomic"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/hcm"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
)

// loops are the workers of the process. Life: make, run, stop.
type loops struct {
	mu      sync.Mutex
	list    []*loop
	stopped bool
	done    sync.WaitGroup
}

func (ls *loops) all() []*loop {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.list
}

func (ls *loops) count() int { return len(ls.all()) }

// make makes n workers.
func (ls *loops) make(n int, cells []*counters.Worker) error {
	var list []*loop
	lacking := &listener.Lacking{}
	active := make([]*uint64, n)
	for id := range n {
		active[id] = &cells[id][counters.WorkerCxActive]
	}
	for id := range n {
		p, err := epoll.New()
		if err != nil {
			return err
		}
		w, err := worker.New(id, p)
		if err != nil {
			p.Destroy()
			return err
		}
		side := tlstransport.NewSide(w)
		manager := upstream.NewManager(w, side)
		list = append(list, &loop{
			Worker: w, poller: p, manager: manager, tls: side, http: hcm.NewShared(w, manager), reserve: listener.NewReserve(p, lacking), cells: cells[id],
			global: listener.Limit{Cells: active}, listeners: map[string]*bound{}, ids: uint64(id+1) << 48,
		})
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.list = list
	return nil
}

// run starts the workers, each on a thread of its own.
func (ls *loops) run() {
	for _, l := range ls.all() {
		ls.done.Add(1)
		go func() {
			defer ls.done.Done()
			l.Run()
			l.poller.Destroy()
		}()
	}
}

// each runs f on every worker's thread and waits until all have: then every worker has seen what f published. After stop it does
// nothing.
func (ls *loops) each(f func(*loop)) {
	var done sync.WaitGroup
	ls.mu.Lock()
	if !ls.stopped {
		for _, l := range ls.list {
			done.Add(1)
			l.Post(func() {
				defer done.Done()
				f(l)
			})
		}
	}
	ls.mu.Unlock()
	done.Wait()
}

// one runs f on one worker's thread and waits; false after stop, and f is not run.
func (ls *loops) one(l *loop, f func()) bool {
	done := make(chan struct{})
	ls.mu.Lock()
	if ls.stopped {
		ls.mu.Unlock()
		return false
	}
	l.Post(func() {
		defer close(done)
		f()
	})
	ls.mu.Unlock()
	<-done
	return true
}

// post runs f on the first worker's thread, some time; never after stop.
func (ls *loops) post(f func()) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if !ls.stopped && len(ls.list) > 0 {
		ls.list[0].Post(f)
	}
}

// stop ends the loops after what was posted.
func (ls *loops) stop() {
	ls.mu.Lock()
	for _, l := range ls.list {
		if !ls.stopped {
			l.Post(l.Stop)
		}
	}
	ls.stopped = true
	ls.mu.Unlock()
	ls.done.Wait()
}

// connections is how many clients are connected, over all workers, without asking them.
func (ls *loops) connections() (n uint64) {
	for _, l := range ls.all() {
		n += atomic.LoadUint64(&l.cells[counters.WorkerCxActive])
	}
	return n
}

// stuck tells how many loops have not turned within the given time; it wakes all, so that those that sleep prove their life.
func (ls *loops) stuck(within time.Duration) (n int) {
	for _, l := range ls.all() {
		if l.Poller.Now()-l.LastTurn() > int64(within) {
			n++
		}
		l.Poller.Wake()
	}
	return n
}

// stalled is how long the slowest loop has not turned; it wakes all, so that the next answer says it of those that sleep too.
func (ls *loops) stalled() (longest time.Duration) {
	for _, l := range ls.all() {
		longest = max(longest, time.Duration(l.Poller.Now()-l.LastTurn()))
		l.Poller.Wake()
	}
	return longest
}
