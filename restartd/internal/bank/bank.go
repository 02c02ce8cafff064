package bank

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxShards bounds the sockets of one address; proxyd has no use for more workers.
const maxShards = 1024

// defaultMode is the mode of a unix listener's file unless the configuration says otherwise: like a TCP port, anybody
// may connect.
const defaultMode = 0o666

// Address is one address of a listener as configured: "127.0.0.1:80", "[::]:80", "unix:/path".
type Address struct {
	Address string
	Mode    fs.FileMode // unix only; 0 means 0666
}

// Listener is what the bank needs to know of a listener object.
type Listener struct {
	Name        string
	Addresses   []Address
	Backlog     int // 0: somaxconn
	DeferAccept bool
}

// Refusal says why an address cannot be had. configd turns Field into file:line.
type Refusal struct {
	Listener string
	Field    string // "address[1]"
	Message  string
}

// Socket is a duplicate that its receiver must close.
type Socket struct {
	FD       int
	Listener string
	Address  string // as configured
	Index    int    // of the address in its listener
	Shard    int
	Shards   int
	Shared   bool
	Bound    string // with the real port
	// SecondHalf tells the half of a divided address. A shared socket is of the first.
	SecondHalf bool
}

// Bound is one listener of the running snapshot, for Status.
type Bound struct {
	Name      string
	Addresses []string
	Shards    int // of its first TCP address, 1 for shared ones
	Shared    bool
}

// Inherited is a descriptor that restartd was started with.
type Inherited struct {
	Name string
	FD   int
}

// Store is the supervisor's descriptor store (sdnotify.Notifier).
type Store interface {
	StoreFD(name string, fd int) error
	RemoveFD(name string) error
}

// Options are the bank's surroundings. All are required.
type Options struct {
	Store Store
	Log   *slog.Logger
	// Grace is how long the bank keeps its copy of an address that left the configuration, so that the serving
	// generation, told by its own snapshot, has emptied the queue before the socket closes.
	Grace time.Duration
	// After runs f once after d; tests put a fake clock here.
	After func(d time.Duration, f func()) (stop func() bool)
}

// Bank holds the sockets. Its methods may be called from any goroutine; calls of Prepare, Commit and Abort come from
// one (the watch of configd).
//
// Its life: New, Adopt once, then Prepare and Commit (or Abort) for each snapshot, Sockets whenever a generation asks,
// Grow when nobody serves, Close when the suite stops. A bank that is dropped without Close leaves its sockets in the
// supervisor's store: that is what a crash does.
type Bank struct {
	opt Options

	mu        sync.Mutex
	workers   int
	places    []place           // running snapshot, in order
	divided   bool              // each TCP address has two halves, see Divide
	percent   int               // of new connections, for the second halves
	groups    map[string]*group // by key: of the running snapshot, or in their grace
	adopted   map[string]*group // by key: inherited, not yet claimed by a snapshot
	activated []Inherited       // by socket activation, not yet claimed
	next      *plan
}

// place is one address of a listener in a snapshot, with the sockets that serve it.
type place struct {
	listener Listener
	index    int
	group    *group
}

type plan struct {
	workers int
	places  []place
	groups  map[string]*group
	opened  []*group
}

// group is the sockets of one address. It is reached only with Bank.mu held.
type group struct {
	key       string
	bound     parsed
	shards    []shard // never shrinks
	activated bool    // the supervisor's own: not stored, not unlinked
	file      inode   // unix: the file that is ours to unlink
	backlog   int
	deferred  bool
	mode      fs.FileMode
	steered   bool        // a program chooses the shard, or may: of an adopted one nobody knows
	fresh     bool        // adopted: its options are set anew at the first commit
	retire    func() bool // stops the grace timer; nil while in use
}

type shard struct{ fd, number int }

// New returns an empty bank.
func New(opt Options) *Bank {
	return &Bank{opt: opt, groups: map[string]*group{}, adopted: map[string]*group{}}
}

// Adopt takes what restartd inherited. Descriptors that are no listening sockets are closed and removed from the
// store; the rest waits for the first snapshot, whose commit closes what it does not claim. It returns the number of
// sockets kept.
func (b *Bank) Adopt(files []Inherited) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := 0
	for _, f := range files {
		k, number, ours := splitStoreName(f.Name)
		bound, err := verify(f.FD)
		if err == nil && ours {
			err = b.adopt(k, shard{f.FD, number}, bound)
		} else if err == nil {
			b.activated = append(b.activated, f)
		}
		if err != nil {
			b.opt.Log.Warn("inherited descriptor dropped", "name", f.Name, "fd", f.FD, "error", err)
			if ours {
				b.removeStored(f.Name)
			}
			unix.Close(f.FD)
			continue
		}
		kept++
	}
	return kept
}

func (b *Bank) adopt(k string, s shard, bound parsed) error {
	g := b.adopted[k]
	if g == nil {
		g = &group{key: k, bound: bound, fresh: true, steered: !bound.shared()}
		if bound.shared() {
			id, err := inodeOf(bound.path)
			if err != nil {
				return fmt.Errorf("its file is gone: %w", err)
			}
			g.file = id
		}
		b.adopted[k] = g
	}
	switch {
	case g.bound != bound:
		return fmt.Errorf("bound to %s, its siblings to %s", bound, g.bound)
	case bound.shared() && len(g.shards) > 0:
		return errors.New("a second socket of a shared address")
	case slices.ContainsFunc(g.shards, func(o shard) bool { return o.number == s.number }):
		return fmt.Errorf("a second shard %d", s.number)
	}
	g.shards = append(g.shards, s)
	slices.SortFunc(g.shards, func(x, y shard) int { return x.number - y.number })
	return nil
}

// Prepare opens what listeners need and the bank lacks, workers sockets for each TCP address. On a refusal nothing has
// changed. A second Prepare without Commit aborts the first.
func (b *Bank) Prepare(listeners []Listener, workers int) []Refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.abort()
	workers = min(max(workers, 1), maxShards)
	b.next = &plan{workers: workers, groups: map[string]*group{}}
	var refusals []Refusal
	for _, l := range listeners {
		zeros := map[string]int{}
		for i, a := range l.Addresses {
			g, message := b.prepare(l, a, zeros)
			if message != "" {
				refusals = append(refusals, Refusal{Listener: l.Name, Field: fmt.Sprintf("address[%d]", i), Message: message})
				continue
			}
			b.next.places = append(b.next.places, place{l, i, g})
		}
	}
	if refusals != nil {
		b.abort()
	}
	return refusals
}

// prepare finds or opens the sockets of one address; zeros counts the listener's port-0 addresses of one spelling.
func (b *Bank) prepare(l Listener, a Address, zeros map[string]int) (*group, string) {
	p, err := parse(a.Address)
	if err != nil {
		return nil, err.Error()
	}
	k := key(l.Name, zeros[p.String()], p)
	zeros[p.String()]++
	if b.next.groups[k] != nil {
		for _, other := range b.next.places {
			if other.group.key == k {
				return nil, fmt.Sprintf("%s is also address[%d] of listener %q: an address belongs to one listener", p, other.index, other.listener.Name)
			}
		}
	}
	g := b.groups[k]
	if g == nil {
		g = b.claim(k, l.Name, p)
	}
	if g == nil {
		if g, err = b.open(l, a, k, p); err != nil {
			return nil, explain(p, err)
		}
		b.next.opened = append(b.next.opened, g)
	}
	b.next.groups[k] = g
	return g, ""
}

// claim looks for p among the inherited sockets. They stay where they are until Commit, so an abort costs nothing.
func (b *Bank) claim(k, listener string, p parsed) *group {
	if g := b.adopted[k]; g != nil {
		if p.answers(g.bound) {
			return g
		}
		b.opt.Log.Warn("inherited socket is bound elsewhere, dropped", "want", p.String(), "bound", g.bound.String())
		delete(b.adopted, k)
		b.close(g)
	}
	for _, f := range b.activated {
		bound, err := boundTo(f.FD)
		if f.Name == listener && err == nil && p.answers(bound) && !b.next.uses(f.FD) {
			return &group{key: k, bound: bound, shards: []shard{{fd: f.FD}}, activated: true, fresh: true}
		}
	}
	return nil
}

func (p *plan) uses(fd int) bool {
	for _, g := range p.groups {
		if g.activated && g.shards[0].fd == fd {
			return true
		}
	}
	return false
}

func (b *Bank) open(l Listener, a Address, k string, p parsed) (*group, error) {
	g := &group{key: k, bound: p, backlog: l.Backlog, deferred: l.DeferAccept, mode: mode(a)}
	if p.shared() {
		fd, id, err := listenUnix(p, g.mode, l.Backlog)
		if err != nil {
			return nil, err
		}
		g.shards, g.file = []shard{{fd: fd}}, id
		b.store(g, g.shards[0])
		return g, nil
	}
	if p.port() != 0 {
		// Our own socket on the port (the wildcard beside one interface, or a listener in its grace) is no foreigner.
		if err := probe(p); err != nil && (!errors.Is(err, unix.EADDRINUSE) || !b.hasPort(p)) {
			return nil, err
		}
	}
	n := b.next.workers
	if b.divided {
		n = min(2*n, maxShards)
	}
	err := b.grow(g, n)
	if err == nil && b.divided {
		err = b.share(g)
	}
	if err != nil {
		b.close(g)
		return nil, err
	}
	return g, nil
}

func mode(a Address) fs.FileMode {
	if a.Mode == 0 {
		return defaultMode
	}
	return a.Mode.Perm()
}

func (b *Bank) hasPort(p parsed) bool {
	same := func(groups map[string]*group) bool {
		for _, g := range groups {
			if !g.bound.shared() && g.bound.port() == p.port() && g.bound.family() == p.family() {
				return true
			}
		}
		return false
	}
	return same(b.groups) || same(b.adopted) || same(b.next.groups)
}

// grow opens shards of g until it has n. The first one of port 0 decides the port.
func (b *Bank) grow(g *group, n int) error {
	for number := 0; len(g.shards) < n; number++ {
		if slices.ContainsFunc(g.shards, func(s shard) bool { return s.number == number }) {
			continue
		}
		fd, err := listenTCP(g.bound, g.backlog, g.deferred)
		if err != nil {
			return err
		}
		if g.bound.port() == 0 {
			got, err := boundTo(fd)
			if err != nil {
				unix.Close(fd)
				return err
			}
			g.bound = g.bound.withPort(got.port())
		}
		s := shard{fd, number}
		g.shards = append(g.shards, s)
		b.store(g, s)
	}
	slices.SortFunc(g.shards, func(x, y shard) int { return x.number - y.number })
	return nil
}

// Commit makes the prepared snapshot the running one. What it no longer names is closed after the grace.
func (b *Bank) Commit() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		return
	}
	next := b.next
	b.next = nil
	b.workers, b.places = next.workers, next.places
	for k, g := range next.groups {
		if g.retire != nil {
			g.retire()
			g.retire = nil
			b.steer(g, takeAgain)
		}
		delete(b.adopted, k)
		if g.activated {
			b.activated = slices.DeleteFunc(b.activated, func(f Inherited) bool { return f.FD == g.shards[0].fd })
		}
		b.groups[k] = g
	}
	for _, p := range b.places {
		b.reconfigure(p)
	}
	for k, g := range b.adopted {
		b.opt.Log.Info("inherited socket is not in the configuration, closing it", "address", g.bound.String())
		b.groups[k] = g
	}
	clear(b.adopted)
	for k, g := range b.groups {
		if next.groups[k] == nil && g.retire == nil {
			b.retire(g)
		}
	}
	for _, f := range b.activated {
		b.opt.Log.Warn("socket from socket activation matches no listener address, closed: its name must be a listener's and its address one of the listener's", "name", f.Name)
		unix.Close(f.FD)
	}
	b.activated = nil
}

// reconfigure applies the options that a living socket can change.
func (b *Bank) reconfigure(p place) {
	g, l, m := p.group, p.listener, mode(p.listener.Addresses[p.index])
	for _, s := range g.shards {
		if g.backlog != l.Backlog || g.fresh {
			if err := unix.Listen(s.fd, listenBacklog(l.Backlog)); err != nil {
				b.opt.Log.Warn("backlog not changed", "listener", l.Name, "address", g.bound.String(), "error", err)
			}
		}
		if !g.bound.shared() && (g.deferred != l.DeferAccept || g.fresh) {
			if err := setDeferAccept(s.fd, l.DeferAccept); err != nil {
				b.opt.Log.Warn("option not changed", "listener", l.Name, "address", g.bound.String(), "error", err)
			}
		}
	}
	if g.bound.shared() && !g.activated && (g.mode != m || g.fresh) {
		if err := unix.Chmod(g.bound.path, uint32(m)); err != nil {
			b.opt.Log.Warn("mode not changed", "listener", l.Name, "path", g.bound.path, "error", err)
		}
	}
	g.backlog, g.deferred, g.mode, g.fresh = l.Backlog, l.DeferAccept, m, false
}

// Abort closes what the prepared snapshot opened.
func (b *Bank) Abort() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.abort()
}

func (b *Bank) abort() {
	if b.next == nil {
		return
	}
	for _, g := range b.next.opened {
		b.close(g)
	}
	b.next = nil
}

// Sockets duplicates the sockets of the named listeners, of all when there is no name. While a snapshot is prepared it
// answers with the addresses of both snapshots, the prepared one's first, since it cannot know which one the asking
// generation builds: the receiver takes those that its own listener object names.
func (b *Bank) Sockets(names []string) ([]Socket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Socket
	fail := func(err error) ([]Socket, error) {
		for _, s := range out {
			unix.Close(s.FD)
		}
		return nil, err
	}
	places := b.places
	if b.next != nil {
		places = slices.Clone(b.next.places)
		for _, p := range b.places {
			if !slices.ContainsFunc(b.next.places, func(n place) bool { return n.group == p.group && n.listener.Name == p.listener.Name }) {
				places = append(places, p)
			}
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(places, func(p place) bool { return p.listener.Name == name }) {
			return fail(fmt.Errorf("no listener %q: restartd has not been told of it by configd", name))
		}
	}
	for _, p := range places {
		if len(names) > 0 && !slices.Contains(names, p.listener.Name) {
			continue
		}
		for i, s := range p.group.shards {
			fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return fail(fmt.Errorf("duplicate a socket of listener %q: %w", p.listener.Name, err))
			}
			out = append(out, Socket{
				FD: fd, Listener: p.listener.Name, Address: p.listener.Addresses[p.index].Address, Index: p.index,
				Shard: i, Shards: len(p.group.shards), Shared: p.group.shared(), Bound: p.group.bound.String(),
				SecondHalf: b.divided && !p.group.shared() && i >= p.group.half(),
			})
		}
	}
	return out, nil
}

func (g *group) shared() bool { return g.bound.shared() || g.activated }

// Listeners tells the running snapshot's listeners, in its order.
func (b *Bank) Listeners() []Bound {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Bound
	for _, p := range b.places {
		if len(out) == 0 || out[len(out)-1].Name != p.listener.Name {
			out = append(out, Bound{Name: p.listener.Name, Shards: 1, Shared: true})
		}
		l := &out[len(out)-1]
		l.Addresses = append(l.Addresses, p.group.bound.String())
		if !p.group.shared() {
			l.Shared = false
			l.Shards = max(l.Shards, len(p.group.shards))
		}
	}
	return out
}

// Close closes every socket, takes them out of the store and unlinks the files of unix listeners. The bank is of no
// use afterwards.
func (b *Bank) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.abort()
	for _, groups := range []map[string]*group{b.groups, b.adopted} {
		for _, g := range groups {
			if g.retire != nil {
				g.retire()
				g.retire = nil
			}
			b.close(g)
		}
		clear(groups)
	}
	for _, f := range b.activated {
		unix.Close(f.FD)
	}
	b.activated, b.places = nil, nil
}

func (b *Bank) store(g *group, s shard) {
	name := storeName(g.key, s.number)
	if err := b.opt.Store.StoreFD(name, s.fd); err != nil {
		b.opt.Log.Warn("socket not stored with the supervisor: it would not survive a crash of restartd", "name", name, "error", err)
	}
}

func (b *Bank) removeStored(name string) {
	if err := b.opt.Store.RemoveFD(name); err != nil {
		b.opt.Log.Warn("socket not removed from the supervisor's store", "name", name, "error", err)
	}
}

func (b *Bank) close(g *group) {
	if g.bound.shared() && !g.activated {
		if now, err := inodeOf(g.bound.path); err == nil && now == g.file {
			unix.Unlink(g.bound.path)
		}
	}
	for _, s := range g.shards {
		if !g.activated {
			b.removeStored(storeName(g.key, s.number))
		}
		unix.Close(s.fd)
	}
	g.shards = nil
}
