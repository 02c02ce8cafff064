package region

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// Spill takes the series of a process while statsd is away: a small region of its own below the run directory, with
// the same layout, which statsd finds, counts, and folds when the process has died. So no counter lives only in a heap.
//
// Its life: the main side opens it when statsd does not answer a Declare, declares there as it would there, and gives
// each worker the cells of the spill's sheet. When statsd is back, groups are declared there and new handles point
// there; what old handles count in the spill stays counted, for as long as the process lives. A process needs one.
type Spill struct {
	mu     sync.Mutex
	store  *Store
	gen    uint64
	sheets map[uint32]*Sheet
}

// SpillDir is where spills are, below the suite's run directory.
func SpillDir(runDir string) string { return filepath.Join(runDir, "spill") }

// removedPrefix begins the name of a spill that is folded and not wholly removed.
const removedPrefix = "removed-"

// maxSpills bounds what statsd looks at: a process has one, and at most four generations live.
const maxSpills = 64

// NewSpill begins a spill below the run directory.
func NewSpill(runDir string, generation uint64, options Options) (*Spill, error) {
	root := SpillDir(runDir)
	var random [6]byte
	rand.Read(random[:])
	dir := filepath.Join(root, fmt.Sprintf("%d-%d-%s", generation, os.Getpid(), hex.EncodeToString(random[:])))
	for _, d := range []string{root, dir} {
		// Group-writable: statsd, of another user perhaps, removes what it has folded. A sandbox may forbid chmod with the
		// setgid bit; a run directory that has it passes it on by itself, and then there is nothing to change.
		if err := os.Mkdir(d, 0o770); err == nil {
			if err := groupWritable(d); err != nil {
				return nil, fmt.Errorf("begin a spill of statistics: %w", err)
			}
		} else if !errors.Is(err, os.ErrExist) || d == dir {
			return nil, fmt.Errorf("begin a spill of statistics: %w", err)
		}
	}
	store, err := Open(dir, options)
	if err != nil {
		return nil, err
	}
	return &Spill{store: store, gen: generation, sheets: map[uint32]*Sheet{}}, nil
}

func groupWritable(dir string) error {
	st, err := os.Stat(dir)
	if err == nil && st.Mode()&(os.ModePerm|os.ModeSetgid) != 0o770|os.ModeSetgid {
		err = os.Chmod(dir, 0o770|os.ModeSetgid)
	}
	return err
}

// Declare answers as stats/v1 Declare does: a base for each group, NoCell for one refused, and then an error that says
// why.
func (p *Spill) Declare(schemas []*statsv1.Schema, groups []*statsv1.Group) ([]uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.store.DeclareAll(schemas, groups)
}

// Sheet returns the sheet of one worker of this process, made at the first call.
func (p *Spill) Sheet(worker uint32) (*Sheet, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.sheets[worker]; s != nil {
		return s, nil
	}
	files, err := p.store.createSheet(p.gen, worker)
	if err != nil {
		return nil, err
	}
	// The store keeps a descriptor of its own to grow the sheet by; the lock's only one belongs to the sheet.
	grow, err := unix.FcntlInt(uintptr(files.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		files.remove(p.store.dirfd)
		return nil, fmt.Errorf("spill of statistics: %w", err)
	}
	view, err := newSheetView(files, grow, -1, true)
	if err != nil {
		files.remove(p.store.dirfd)
		return nil, err
	}
	sheet, err := AttachSheet(files.fd, files.lock)
	if err != nil {
		view.close()
		return nil, err
	}
	p.store.sheets = append(p.store.sheets, view)
	p.sheets[worker] = sheet
	return sheet, nil
}

// Epoch is the identity of the spill: bases of the region mean nothing in it.
func (p *Spill) Epoch() uint64 { return p.store.epoch }

// Close ends the spill; statsd folds it. Nobody may store into its cells any more.
func (p *Spill) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sheets {
		s.Close()
	}
	p.store.Close()
}

// spillView is somebody's spill as statsd and readers see it: content that a less trusted process writes.
type spillView struct {
	name  string
	owner int
	view  *view
}

// openSpills brings known up to date with the spills below the run directory: those that are gone are closed and left
// out, new ones opened. One that cannot be read is left out and told in the error; the others are there all the same.
func openSpills(runDir string, known []*spillView) ([]*spillView, error) {
	root := SpillDir(runDir)
	names, err := readNames(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return known, fmt.Errorf("look for spills of statistics: %w", err)
	}
	var errs []error
	if len(names) > maxSpills {
		errs = append(errs, fmt.Errorf("%d spills of statistics in %s: only %d are looked at", len(names), root, maxSpills))
		names = names[:maxSpills]
	}
	byName := map[string]*spillView{}
	for _, s := range known {
		byName[s.name] = s
	}
	var open []*spillView
	for _, name := range names {
		if strings.HasPrefix(name, removedPrefix) {
			continue
		}
		s := byName[name]
		delete(byName, name)
		if s == nil {
			if s, err = openSpill(filepath.Join(root, name), name); err != nil {
				if !errors.Is(err, unix.ENOENT) { // being made or being removed
					errs = append(errs, err)
				}
				continue
			}
		}
		if err := s.view.refresh(); err != nil {
			s.close()
			if !isGone(err) {
				errs = append(errs, fmt.Errorf("spill of statistics %s: %w", name, err))
			}
			continue
		}
		open = append(open, s)
	}
	for _, s := range byName {
		s.close()
	}
	return open, errors.Join(errs...)
}

func openSpill(dir, name string) (*spillView, error) {
	v, err := openView(dir)
	if err != nil {
		return nil, err
	}
	owner, err := openExisting(v.dirfd, ownerFile, unix.O_RDONLY)
	if err != nil {
		v.close()
		return nil, err
	}
	return &spillView{name, owner, v}, nil
}

// Close lets go of what openSpills opened.
func (s *spillView) close() {
	unix.Close(s.owner)
	s.view.close()
}

// ownerGone reports that the process of the spill is dead: nothing in it changes any more.
func (s *spillView) ownerGone() bool {
	_, held, err := lockHolder(s.owner)
	return err == nil && !held
}

// inheritance is a dead sheet of a spill, with the groups of the region that its groups are.
type inheritance struct {
	sheet  *sheetView
	groups []groupPair
}

type groupPair struct{ from, to *Group }

// inherit declares what the spills name and returns the sheets in them that can be folded. A group over the cap is
// dropped with a warning; a full tmpfs leaves the spill as it is, for the next time.
func (st *Store) inherit(runDir string) ([]inheritance, error) {
	spills, err := openSpills(runDir, st.spills)
	st.spills = spills
	if err != nil {
		st.options.Log.Warn("a spill of statistics is not counted", "error", err)
	}
	var all []inheritance
	for _, spill := range spills {
		gone := spill.ownerGone() // asked before its sheets are looked at
		var pairs []groupPair
		for _, g := range spill.view.groups {
			if g.Retired { // of a compacted region: hidden there, and maybe here
				if here := st.groupOf[g.key]; here != nil {
					pairs = append(pairs, groupPair{g, here})
				}
				continue
			}
			base, err := st.Declare(g.Schema, g.Labels)
			if errors.Is(err, ErrCap) {
				if gone {
					st.options.Log.Warn("a group of a spill of statistics is dropped", "spill", spill.name, "schema", g.Schema.Name, "error", err)
				}
				continue
			}
			if err != nil {
				return all, err
			}
			pairs = append(pairs, groupPair{g, st.at[base]})
		}
		left := 0
		for _, s := range spill.view.sheets {
			if st.ledger.folded(s.epoch, s.id) {
				continue
			}
			// A sheet that was attached and is not locked is dead for ever: nobody may attach it twice.
			if state, err := s.word(sState); err == nil && !s.live() && (gone || state != sheetFresh) {
				all = append(all, inheritance{s, pairs})
			} else {
				left++
			}
		}
		if gone && left == 0 && len(all) == 0 {
			st.removeSpill(spill)
		}
	}
	st.sweepSpills(SpillDir(runDir))
	return all, nil
}

// removeSpill takes a spill, of which everything is folded, from those that readers look for; sweepSpills does the rest.
func (st *Store) removeSpill(spill *spillView) {
	st.options.step("rename spill")
	root := filepath.Dir(spill.view.dir)
	if err := os.Rename(spill.view.dir, filepath.Join(root, removedPrefix+spill.name)); err != nil {
		st.options.Log.Warn("a folded spill of statistics cannot be removed; remove it by hand", "spill", spill.view.dir, "error", err)
	}
}

func (st *Store) sweepSpills(root string) {
	names, err := readNames(root)
	if err != nil {
		return
	}
	for _, name := range names {
		_, err := os.Lstat(filepath.Join(root, name, "header"))
		unborn := strings.HasPrefix(name, compactedPrefix) && errors.Is(err, os.ErrNotExist) // its maker, an owner, is dead
		if unborn || strings.HasPrefix(name, removedPrefix) {
			st.options.step("remove spill")
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				st.options.Log.Warn("a folded spill of statistics cannot be removed; remove it by hand", "spill", name, "error", err)
			}
		}
	}
}
