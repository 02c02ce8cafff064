// Package worker is one event loop on one thread: readiness, timers, posted tasks, the flush of what a turn produced.
//
// A worker owns everything that hangs on it (connections, pools, timers, buffers) and shares nothing: other threads reach
// it only through Post. Its order of work is poll, ready descriptors, due timers, posted tasks, deferred tasks, flush.
package worker

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/timer"
)

const (
	// ScratchSize is the bytes of the buffer that receives every read.
	ScratchSize = 256 << 10
	// RecordSize is the plain bytes of the largest record of a transport.
	RecordSize = 16 << 10
	batch      = 256         // events a turn
	idleWait   = int64(10e9) // ns: how long a worker sleeps at most
	trimEvery  = int64(5e9)  // ns
	busyTurns  = 2           // empty raw waits before the thread parks
	// busyTime is for how long an idle loop looks for what is expected before it sleeps, in nanoseconds: about what going to sleep and being woken from another
	// processor cost in a virtual machine. busyLooks bounds it where no clock runs.
	busyTime  = int64(40e3)
	busyLooks = 512
	// busyPause bounds how many sleeps go without, one after the other, once looking came to nothing.
	busyPause = 63
)

// Source is what a token of the poller stands for: a connection, a listening socket.
type Source interface {
	// OnEvents is called with the events of the descriptor.
	OnEvents(events uint32)
}

// Runner does the work of a Task.
type Runner interface{ RunTask() }

// Task is work for later on the same thread, embedded in its owner; queueing it allocates nothing. A queued task may
// be queued again without effect.
type Task struct {
	Runner Runner
	next   *Task
	queued bool
}

// Flusher is something with staged output. The worker flushes it once at the end of the turn.
type Flusher interface{ Flush() }

// Spent is memory whose life is over in this turn, but which callers further up the stack, queued tasks and staged output may
// still look at.
type Spent interface {
	// Reclaim gives the memory to its free list, at the end of a turn. False: something is still queued, ask again.
	Reclaim() bool
}

// Worker is one loop. Make it with New, then call Run on the goroutine that shall be the loop.
type Worker struct {
	ID      int
	Poller  poller.Poller
	Pool    buffer.Pool
	Timers  timer.Wheel
	Scratch []byte   // ScratchSize mapped bytes, for the callback that is running
	Plain   []byte   // as many, for what a transport has opened of them; untouched where none is used
	Record  []byte   // RecordSize mapped bytes in which a transport's next record is put together
	Pieces  [][]byte // scratch for vectored writes
	// Conns is package conn's own: its free list of this worker.
	Conns any
	// Expected counts answers that come within microseconds where all is well: those of plugins. While there are some, the loop polls busily before it
	// sleeps.
	Expected int

	now, wall int64
	wallRead  int64 // when wallAhead was read
	wallAhead int64 // time of day minus the monotonic clock
	slots     []slot
	freeSlots []uint32
	soon      *Task
	soonTail  *Task
	dirty     []Flusher
	spent     []Spent
	events    []poller.Event
	rng       *rand.PCG
	trimmed   int64
	pipes     []*Pipe // empty ones
	pipesOut  int
	pipeAgain int64 // ns: when a pipe may be asked for again
	empty     int
	misses    int // sleeps without looking before, after the last time that it came to nothing
	skips     int // how many of them are still to come
	stopping  bool

	mailbox struct {
		sync.Mutex
		posts []func()
	}
	posted atomic.Bool // spares a turn without posts the lock
	spare  []func()    // the other half of the mailbox

	turns    atomic.Uint64
	busy     atomic.Uint64 // of them those in which something came
	lastTurn atomic.Int64
}

type slot struct {
	source     Source
	generation uint32
}

// New makes worker id over a poller.
func New(id int, p poller.Poller) (*Worker, error) {
	memory, err := buffer.Map(2*ScratchSize + RecordSize)
	if err != nil {
		return nil, err
	}
	w := &Worker{ID: id, Poller: p, Pieces: make([][]byte, 0, 64), events: make([]poller.Event, batch)}
	w.Scratch = memory[:ScratchSize:ScratchSize]
	w.Plain = memory[ScratchSize : 2*ScratchSize : 2*ScratchSize]
	w.Record = memory[2*ScratchSize:]
	w.rng = rand.NewPCG(rand.Uint64(), rand.Uint64())
	w.readClock()
	w.Timers.Init(w.now)
	w.lastTurn.Store(w.now)
	return w, nil
}

// Now is the monotonic clock in nanoseconds, read once a turn.
func (w *Worker) Now() int64 { return w.now }

// Wall is the time of day in nanoseconds since 1970, of the same reading.
func (w *Worker) Wall() int64 { return w.wall }

// Rand is a fast random number; not for secrets.
func (w *Worker) Rand() uint64 { return w.rng.Uint64() }

// Turns and LastTurn tell other threads that the loop lives: turns run, and the clock at the last one.
func (w *Worker) Turns() uint64 { return w.turns.Load() }

// BusyTurns is how many turns had something to read, write or accept: what only timers have woken is not among them.
func (w *Worker) BusyTurns() uint64 { return w.busy.Load() }

// LastTurn is the loop's clock (Poller.Now) at its last turn.
func (w *Worker) LastTurn() int64 { return w.lastTurn.Load() }

// Register gives a source its token and adds its descriptor to the poller.
func (w *Worker) Register(fd int32, s Source, shared bool) (uint64, poller.Errno) {
	token := w.token(s)
	if errno := w.Poller.Add(fd, token, shared); errno != 0 {
		w.Forget(token)
		return 0, errno
	}
	return token, 0
}

func (w *Worker) token(s Source) uint64 {
	var index uint32
	if n := len(w.freeSlots); n > 0 {
		index = w.freeSlots[n-1]
		w.freeSlots = w.freeSlots[:n-1]
	} else {
		index = uint32(len(w.slots))
		w.slots = append(w.slots, slot{})
	}
	w.slots[index].source = s
	return uint64(index) | uint64(w.slots[index].generation)<<32
}

// Forget makes events of a token that are still in this turn's batch go nowhere: descriptors are used again at once.
func (w *Worker) Forget(token uint64) {
	index := uint32(token)
	w.slots[index].source = nil
	w.slots[index].generation++
	w.freeSlots = append(w.freeSlots, index)
}

// Replace changes what a token stands for: a connection that lies still has a stand-in.
func (w *Worker) Replace(token uint64, s Source) { w.slots[uint32(token)].source = s }

// Post runs f on the worker's thread, in the order of posting. Any thread.
func (w *Worker) Post(f func()) {
	w.mailbox.Lock()
	w.mailbox.posts = append(w.mailbox.posts, f)
	first := len(w.mailbox.posts) == 1
	w.posted.Store(true)
	w.mailbox.Unlock()
	if first {
		w.Poller.Wake()
	}
}

// Soon queues t for the end of this turn, or for the next turn when called by a task. Worker's thread.
func (w *Worker) Soon(t *Task) {
	if t.queued {
		return
	}
	t.queued = true
	if w.soonTail == nil {
		w.soon = t
	} else {
		w.soonTail.next = t
	}
	w.soonTail = t
}

// Dirty has f flushed at the end of the turn. Call it once until the flush.
func (w *Worker) Dirty(f Flusher) { w.dirty = append(w.dirty, f) }

// Bury has s reclaimed at the end of the turn.
func (w *Worker) Bury(s Spent) { w.spent = append(w.spent, s) }

// Queued tells that the task waits to run.
func (t *Task) Queued() bool { return t.queued }

// Stop makes Run return after the turn. Worker's thread.
func (w *Worker) Stop() { w.stopping = true }

// Run is the loop. It locks its goroutine to a thread until Stop.
func (w *Worker) Run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Garbage-collector work on the same CPU is what hurts the tail; without the right it goes on as it is.
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -5)
	for !w.stopping {
		w.Turn(idleWait)
	}
}

// Turn runs the loop once and waits for events for at most the given nanoseconds.
func (w *Worker) Turn(most int64) {
	timeout := w.timeout(most)
	n, came := 0, false
	if w.Expected > 0 && timeout > 0 {
		n, came = w.look()
	}
	if !came {
		n = w.Poller.Wait(w.events, timeout, w.empty >= busyTurns)
	}
	w.readClock()
	if n == 0 {
		w.empty++
	} else {
		w.empty = 0
		w.busy.Store(w.busy.Load() + 1)
	}
	for i := range w.events[:n] {
		e := &w.events[i]
		s := &w.slots[uint32(e.Token)]
		if s.source != nil && s.generation == uint32(e.Token>>32) {
			s.source.OnEvents(e.Events)
		}
	}
	w.Timers.Run(w.now)
	w.runPosts()
	w.runSoon()
	w.flush()
	w.reclaim()
	if w.now-w.trimmed > trimEvery {
		w.Trim()
	}
	w.turns.Add(1)
	w.lastTurn.Store(w.now)
}

// Trim gives buffers and pipes back that nobody uses. It comes by itself now and then.
func (w *Worker) Trim() {
	w.trimmed = w.now
	w.Pool.Trim()
	w.trimPipes()
}

// look polls for a while without sleeping. When something comes it has cost some µs more than it saves, on a processor that has nothing else to do; it is
// given up for longer and longer when nothing does: the other side is slow, or waits for this very processor.
func (w *Worker) look() (n int, came bool) {
	if w.skips > 0 {
		w.skips--
		return 0, false
	}
	began := w.Poller.Now()
	for looks := 0; looks < busyLooks && w.Poller.Now()-began < busyTime; looks++ {
		n := w.Poller.Wait(w.events, 0, false)
		if n > 0 || w.posted.Load() { // the poller has swallowed the wake-up
			w.misses = 0
			return n, true
		}
	}
	w.misses = min(2*w.misses+1, busyPause)
	w.skips = w.misses
	return 0, false
}

func (w *Worker) timeout(most int64) int64 {
	if w.soon != nil || len(w.dirty) > 0 {
		return 0
	}
	if at, ok := w.Timers.Next(); ok {
		most = min(most, at-w.now)
	}
	return max(most, 0)
}

// wallEvery is how often the time of day is read; in between it runs with the monotonic clock.
const wallEvery = int64(100e6)

func (w *Worker) readClock() {
	w.now = w.Poller.Now()
	if w.now-w.wallRead >= wallEvery || w.wallRead == 0 {
		w.wallRead, w.wallAhead = w.now, w.Poller.Wall()-w.now
	}
	w.wall = w.now + w.wallAhead
}

func (w *Worker) runPosts() {
	if !w.posted.Load() {
		return
	}
	w.mailbox.Lock()
	w.posted.Store(false)
	posts := w.mailbox.posts
	w.mailbox.posts = w.spare[:0]
	w.mailbox.Unlock()
	for i, f := range posts {
		f()
		posts[i] = nil
	}
	w.spare = posts
	w.empty = 0
}

func (w *Worker) runSoon() {
	t := w.soon
	w.soon, w.soonTail = nil, nil
	for t != nil {
		next := t.next
		t.next, t.queued = nil, false
		t.Runner.RunTask()
		t = next
	}
}

// flush writes staged output. A flush may stage more (a low watermark lets a reader go on): that waits for the next round,
// and the rounds are bounded, so that two connections cannot keep each other busy for ever.
func (w *Worker) flush() {
	for round := 0; len(w.dirty) > 0 && round < 4; round++ {
		n := len(w.dirty)
		for i := range n {
			w.dirty[i].Flush()
			w.dirty[i] = nil
		}
		rest := copy(w.dirty, w.dirty[n:])
		clear(w.dirty[rest:])
		w.dirty = w.dirty[:rest]
	}
}

func (w *Worker) reclaim() {
	if len(w.spent) == 0 {
		return
	}
	kept := w.spent[:0]
	for _, s := range w.spent {
		if !s.Reclaim() {
			kept = append(kept, s)
		}
	}
	clear(w.spent[len(kept):])
	w.spent = kept
}
