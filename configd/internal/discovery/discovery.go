// Package discovery owns the endpoints that are found while a configuration stays as it is: by DNS and out of files.
//
// A Table has one task for each cluster with discovery. A task looks, keeps what it found when it differs, and looks again when
// the records' time to live is over or the file has changed. A look-up that fails changes nothing: the last good endpoints stay,
// here and in every proxyd. Followers read changes by version.
package discovery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"
)

// Table is the endpoints of all clusters with discovery. Any goroutine may use it.
type Table struct {
	log  *slog.Logger
	look func(ctx context.Context, d *configv1.Discovery, last *look) look
	now  func() time.Time

	mu      sync.Mutex
	tasks   map[string]*task
	version uint64
	changed chan struct{} // closed and replaced with every version
}

// task looks for the endpoints of one cluster, from Set until Set without it.
type task struct {
	cluster string
	spec    *configv1.Discovery
	cancel  context.CancelFunc
	first   chan struct{} // closed when the first look is over

	// Under the table's lock:
	endpoints []*configv1.Endpoint // last good; nil: none yet
	all       []*configv1.Endpoint // those with all of their addresses
	version   uint64
	failure   string
	since     time.Time // of the failure
	tally
}

// tally counts the looks of a cluster; it outlives a change of how is looked.
type tally struct {
	successes, failures, empties, noRebuilds uint64
	succeeded                                time.Time
}

// look is the outcome of one look.
type look struct {
	endpoints []*configv1.Endpoint
	again     time.Duration
	err       error
	stamp     stamp // of a file
	failures  int   // of DNS, in a row
}

// stamp tells whether a file changed.
type stamp struct {
	size  int64
	mtime time.Time
	inode uint64
}

// New makes an empty table.
func New(log *slog.Logger) *Table {
	r := newResolver()
	return &Table{log: log, look: r.look, now: time.Now, tasks: map[string]*task{}, changed: make(chan struct{})}
}

// Of is the discoveries of a snapshot's objects, by cluster.
func Of(objects []*configv1.Object) map[string]*configv1.Discovery {
	out := map[string]*configv1.Discovery{}
	for _, o := range objects {
		if d := o.GetCluster().GetDiscovery(); d != nil {
			out[o.GetName()] = d
		}
	}
	return out
}

// Set makes the wanted discoveries those that run. One that stays the same goes on undisturbed.
func (t *Table) Set(wanted map[string]*configv1.Discovery) {
	t.mu.Lock()
	defer t.mu.Unlock()
	counted := map[string]tally{}
	for name, task := range t.tasks {
		if d := wanted[name]; d == nil || !proto.Equal(d, task.spec) {
			task.cancel()
			delete(t.tasks, name)
			counted[name] = task.tally
		}
	}
	for name, d := range wanted {
		if t.tasks[name] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		task := &task{cluster: name, spec: d, cancel: cancel, first: make(chan struct{}), tally: counted[name]}
		t.tasks[name] = task
		go t.run(ctx, task)
	}
}

// Add runs further discoveries beside those that run: those of a snapshot that is about to be offered, so that its clusters have
// endpoints when it comes into force. A cluster that has another discovery now keeps it until Set.
func (t *Table) Add(wanted map[string]*configv1.Discovery) {
	all := map[string]*configv1.Discovery{}
	for name, d := range wanted {
		all[name] = d
	}
	t.mu.Lock()
	for name, task := range t.tasks {
		all[name] = task.spec
	}
	t.mu.Unlock()
	t.Set(all)
}

// Settle waits until every task has looked once, or until the context ends.
func (t *Table) Settle(ctx context.Context) {
	t.mu.Lock()
	var waits []chan struct{}
	for _, task := range t.tasks {
		waits = append(waits, task.first)
	}
	t.mu.Unlock()
	for _, w := range waits {
		select {
		case <-w:
		case <-ctx.Done():
			return
		}
	}
}

// run looks until the task is over.
func (t *Table) run(ctx context.Context, task *task) {
	var last look
	first := true
	for ctx.Err() == nil {
		got := t.look(ctx, task.spec, &last)
		if ctx.Err() != nil {
			return
		}
		t.take(task, got)
		last = got
		if first {
			close(task.first)
			first = false
		}
		select {
		case <-time.After(got.again):
		case <-ctx.Done():
		}
	}
}

func (t *Table) take(task *task, got look) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(got.err, errNothing):
		task.empties++
	case got.err != nil:
		task.failures++
	case got.endpoints != nil:
		task.successes++
		task.succeeded = t.now()
	}
	if got.err != nil {
		if text := got.err.Error(); text != task.failure {
			task.failure, task.since = text, t.now()
			t.log.Warn("endpoints are not found; those found last stay", "cluster", task.cluster, "endpoints", len(task.endpoints), "error", text)
		}
		return
	}
	if task.failure != "" {
		t.log.Info("endpoints are found again", "cluster", task.cluster, "failed_for", t.now().Sub(task.since).Round(time.Second).String())
		task.failure = ""
	}
	if got.endpoints == nil { // a file that did not change
		return
	}
	all := normal(got.endpoints)
	found, before := bounded(all), task.all
	task.all = all
	if equal(found, task.endpoints) {
		task.noRebuilds++
		return
	}
	if equal(sorted(all), sorted(before)) {
		t.log.Debug("addresses have another order", "cluster", task.cluster, "endpoints", len(found))
	} else {
		t.log.Info("endpoints changed", "cluster", task.cluster, "endpoints", len(found), "before", len(task.endpoints))
	}
	t.version++
	task.endpoints, task.version = found, t.version
	close(t.changed)
	t.changed = make(chan struct{})
}

func equal(a, b []*configv1.Endpoint) bool {
	return slices.EqualFunc(a, b, func(a, b *configv1.Endpoint) bool { return proto.Equal(a, b) })
}

// Key is what an endpoint is known by while its addresses change: its name, or its address.
func Key(e *configv1.Endpoint) string { return cmp.Or(e.GetName(), e.GetAddress()) }

// normal orders endpoints, and adds the weights of one that is there twice. The addresses of a logical one keep their order.
func normal(list []*configv1.Endpoint) []*configv1.Endpoint {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *configv1.Endpoint) int { return cmp.Compare(Key(a), Key(b)) })
	out := list[:0]
	for _, e := range list {
		if n := len(out); n > 0 && Key(out[n-1]) == Key(e) {
			sum := proto.CloneOf(out[n-1])
			sum.Weight = min(maxWeight, sum.GetWeight()+e.GetWeight())
			out[n-1] = sum
			continue
		}
		out = append(out, e)
	}
	return out
}

// Since returns what changed after a version, the version now, and a channel that is closed with the next change.
func (t *Table) Since(version uint64) (list []*configv1.ClusterEndpoints, now uint64, next <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, task := range t.tasks {
		if task.endpoints != nil && task.version > version {
			list = append(list, &configv1.ClusterEndpoints{Cluster: task.cluster, Endpoints: task.endpoints})
		}
	}
	slices.SortFunc(list, func(a, b *configv1.ClusterEndpoints) int { return cmp.Compare(a.GetCluster(), b.GetCluster()) })
	return list, t.version, t.changed
}

// Status tells of every cluster with discovery, by name.
func (t *Table) Status() []*configv1.DiscoveryStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*configv1.DiscoveryStatus
	for _, task := range t.tasks {
		s := &configv1.DiscoveryStatus{
			Cluster: task.cluster, Endpoints: uint32(len(task.endpoints)), Failure: task.failure,
			Successes: task.successes, Failures: task.failures, Empties: task.empties, NoRebuilds: task.noRebuilds,
		}
		if !task.succeeded.IsZero() {
			s.LastSuccessUnixMs = task.succeeded.UnixMilli()
		}
		if task.failure != "" {
			s.FailingSinceUnixMs = task.since.UnixMilli()
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *configv1.DiscoveryStatus) int { return cmp.Compare(a.GetCluster(), b.GetCluster()) })
	return out
}

// filePoll is how often a file is looked at. Polling sees what a notification does not: a file that is replaced by way of a link
// to a directory, or lies on a network.
const filePoll = time.Second

// look does one look of either kind.
func (r *resolver) look(ctx context.Context, d *configv1.Discovery, last *look) look {
	if f := d.GetFile(); f != nil {
		return readFile(f.GetPath(), last)
	}
	dns := d.GetDns()
	limit := time.Duration(max(100, dns.GetTimeoutMs())) * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	floor, ceiling := time.Duration(dns.GetMinTtlMs())*time.Millisecond, time.Duration(dns.GetMaxTtlMs())*time.Millisecond
	endpoints, ttl, err := r.lookup(ctx, dns)
	if err != nil {
		before := 0
		if last != nil {
			before = last.failures
		}
		return look{again: max(pause(dns, floor, before), 100*time.Millisecond), err: err, failures: before + 1}
	}
	return look{endpoints: endpoints, again: max(floor, min(ttl, ceiling), 100*time.Millisecond)}
}

// pause is how long to wait after a look-up that failed, behind so many others: the interval, and for each of those up to twice as long as
// after the one before. Envoy's back-off draws from nothing on; here name servers in trouble are never asked sooner than written.
func pause(dns *configv1.DnsDiscovery, floor time.Duration, before int) time.Duration {
	base := floor
	if ms := dns.GetFailureIntervalMs(); ms > 0 {
		base = time.Duration(ms) * time.Millisecond
	}
	most := 10 * base
	if ms := dns.GetMaxFailureIntervalMs(); ms > 0 {
		most = time.Duration(ms) * time.Millisecond
	}
	longest := base
	for ; before > 0 && longest < most; before-- {
		longest *= 2
	}
	return base + rand.N(max(0, min(longest, most)-base)+1)
}

func readFile(path string, last *look) look {
	info, err := os.Stat(path)
	if err != nil {
		return look{again: filePoll, err: err}
	}
	now := stampOf(info)
	if now == last.stamp {
		return look{again: filePoll, err: last.err, stamp: now}
	}
	switch {
	case !info.Mode().IsRegular():
		return look{again: filePoll, err: &os.PathError{Op: "read", Path: path, Err: os.ErrInvalid}}
	case info.Size() > maxFile:
		return look{again: filePoll, err: &os.PathError{Op: "read", Path: path, Err: errLarge}, stamp: now}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return look{again: filePoll, err: err}
	}
	endpoints, err := parseFile(string(data))
	if err != nil {
		return look{again: filePoll, err: &os.PathError{Op: "read", Path: path, Err: err}, stamp: now}
	}
	return look{endpoints: endpoints, again: filePoll, stamp: now}
}
