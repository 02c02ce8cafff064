// Package keeper owns the region in statsd: it serialises everything that writes it, and does the housekeeping.
package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// retireAfter is how long a group that nobody names any more is still shown.
const retireAfter = time.Hour

// maxSheets bounds sheets whose writer is not known to be dead: four generations of 256 workers and their main sides.
const maxSheets = 1100

// Keeper is the region with its lock around it. Its life: Open; any goroutine calls the methods; Turn is called once a
// second; Close.
type Keeper struct {
	runDir string
	log    *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	store   *region.Store
	names   map[uint64]*naming // by base
	looked  time.Time          // when names were last gone through
	compact time.Time          // when compaction may be tried next

	folded, foldErrors, refused, turns, compacted atomic.Uint64
	fullTold                                      bool
}

// naming is who names a group. One that no living generation has named for retireAfter is hidden. What a former statsd was
// told is not known: then every generation that lived at the start names everything, until it says otherwise or dies.
type naming struct {
	generations []uint64
	since       time.Time // nobody names it; zero while somebody does
}

// lookEvery is how often names are gone through; compactEvery how often a region may be made anew.
const (
	lookEvery    = time.Minute
	compactEvery = time.Hour
)

// Open creates or adopts the region of a run directory.
func Open(runDir string, options region.Options) (*Keeper, error) {
	dir, err := region.Place(runDir)
	if err != nil {
		return nil, err
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	store, err := region.Open(dir, options)
	if err != nil {
		return nil, err
	}
	return &Keeper{
		runDir: runDir, log: options.Log, now: options.Now, store: store, names: map[uint64]*naming{},
		looked: options.Now(), compact: options.Now().Add(compactEvery),
	}, nil
}

// Close lets the region go; it stays as it is for the next statsd.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.store.Export(k.runDir); err != nil {
		k.log.Warn("the stats region is not exported; a statsd of another layout would begin at 0", "error", err)
	}
	k.store.Close()
}

// Dir is where the region is.
func (k *Keeper) Dir() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.store.Dir()
}

// Epoch is the region's identity; a compaction changes it.
func (k *Keeper) Epoch() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.store.Epoch()
}

// Declare places groups that a generation names; NoCell stands for one that was refused, and reason says why the first of
// them was. The bases are of the epoch that comes with them.
func (k *Keeper) Declare(generation uint64, schemas []*statsv1.Schema, groups []*statsv1.Group) (bases []uint64, epoch uint64, reason string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	bases, err := k.store.DeclareAll(schemas, groups)
	for _, base := range bases {
		n := k.names[base]
		if n == nil {
			n = &naming{}
			k.names[base] = n
		}
		if n.since = (time.Time{}); !slices.Contains(n.generations, generation) {
			n.generations = append(n.generations, generation)
		}
	}
	delete(k.names, region.NoCell)
	if err != nil {
		reason = err.Error()
		for _, base := range bases {
			if base == region.NoCell {
				k.refused.Add(1)
			}
		}
		k.log.Warn("series were refused", "error", err)
	}
	return bases, k.store.Epoch(), reason
}

// Retire notes that a generation names groups no more. They are hidden in an hour unless some living generation names them
// then. Bases of another epoch than the region's are passed over.
func (k *Keeper) Retire(generation, epoch uint64, bases []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if epoch != 0 && epoch != k.store.Epoch() {
		return
	}
	k.learn()
	for _, base := range bases {
		if n := k.names[base]; n != nil {
			n.generations = slices.DeleteFunc(n.generations, func(g uint64) bool { return g == generation })
			if len(n.generations) == 0 && n.since.IsZero() {
				n.since = k.now()
			}
		}
	}
}

// learn lets every living generation name the groups of which nobody knows who does.
func (k *Keeper) learn() {
	var living []uint64
	for g := range k.store.Generations() {
		living = append(living, g)
	}
	for _, g := range k.store.Groups() {
		if k.names[g.Base] == nil {
			k.names[g.Base] = &naming{generations: slices.Clone(living)}
		}
	}
}

// CreateSheet makes a sheet for a writer; the caller closes both descriptors after sending them.
func (k *Keeper) CreateSheet(generation uint64, worker uint32) (sheet, lock int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.store.Sheets(); n >= maxSheets {
		return -1, -1, fmt.Errorf("%d stats sheets are in use, no more are possible: are there generations of proxyd that do not end?", n)
	}
	return k.store.CreateSheet(generation, worker)
}

// Directory returns a descriptor of the region's directory, for a reader; the caller closes it.
func (k *Keeper) Directory() (int, error) {
	dir := k.Dir()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("open the stats region %s: %w", dir, err)
	}
	return fd, nil
}

// Turn folds what the dead left and retires what nobody names.
func (k *Keeper) Turn() {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, err := k.store.Fold(k.runDir)
	if n > 0 {
		k.folded.Add(uint64(n))
		k.log.Info("sheets of dead writers were folded into the ledger", "sheets", n)
	}
	if err != nil {
		k.foldErrors.Add(1)
		if !k.fullTold || !errors.Is(err, region.ErrFull) {
			k.log.Warn("dead sheets are not folded now; nothing is lost, they are counted where they lie", "error", err)
		}
	}
	k.fullTold = errors.Is(err, region.ErrFull)
	if k.now().Sub(k.looked) >= lookEvery {
		k.looked = k.now()
		k.retire()
		k.compactNow()
	}
	k.turns.Add(1)
}

// retire hides the groups that no living generation has named for long.
func (k *Keeper) retire() {
	k.learn()
	live := k.store.Generations()
	for _, g := range k.store.Groups() {
		n := k.names[g.Base]
		n.generations = slices.DeleteFunc(n.generations, func(generation uint64) bool { return !live[generation] })
		switch {
		case len(n.generations) > 0 || g.Retired:
			n.since = time.Time{}
		case n.since.IsZero():
			n.since = k.now()
		case k.now().Sub(n.since) >= retireAfter:
			if err := k.store.Retire(g.Base, true); err != nil {
				k.log.Warn("a group of series is not retired", "error", err)
				return // a full tmpfs, most likely: the next look tries again
			}
		}
	}
}

// compactNow puts a second region in the place of one that is mostly cells of hidden groups.
func (k *Keeper) compactNow() {
	if k.now().Before(k.compact) || !k.store.Wasted() {
		return
	}
	k.compact = k.now().Add(compactEvery)
	before := k.store.Usage()
	if err := k.store.Compact(k.runDir); err != nil {
		k.log.Warn("the stats region keeps the cells of hidden groups", "error", err)
		return
	}
	k.names = map[uint64]*naming{} // by bases of the old region
	k.compacted.Add(1)
	k.log.Info("the stats region was compacted", "groups", before.Groups, "hidden", before.Retired, "bytes_before", before.Bytes, "bytes", k.store.Usage().Bytes)
}

// Turns rises with every housekeeping: a watchdog looks at it.
func (k *Keeper) Turns() uint64 { return k.turns.Load() }

// Usage is what the region holds and what happened to it since the start.
type Usage struct {
	region.Usage
	Folded, FoldErrors, Refused, Compacted uint64
}

// Usage counts.
func (k *Keeper) Usage() Usage {
	k.mu.Lock()
	defer k.mu.Unlock()
	return Usage{k.store.Usage(), k.folded.Load(), k.foldErrors.Load(), k.refused.Load(), k.compacted.Load()}
}

// SetMaxSeries says how many groups of one schema's name have series of their own from now on.
func (k *Keeper) SetMaxSeries(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.store.SetMaxSeries(n)
}
