// Package maintenance owns which endpoints are drained by command. It is no part of a configuration: a reload, a rollback, a
// restart of any daemon and an upgrade leave it as it is, until the command takes it back.
package maintenance

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

// Most is how many endpoints may be drained at a time.
const Most = 1000

const fileName = "drained.json"

// Keeper keeps the drained endpoints in a file of configd's state directory. Any goroutine.
type Keeper struct {
	path string

	mu      sync.Mutex
	list    []*configv1.DrainedEndpoint // by cluster and address
	version uint64
	changed chan struct{} // closed and replaced with every version
	// Lost says why the file could not be read; nobody is drained then.
	Lost error
}

// entry is one line of the file.
type entry struct {
	Cluster string    `json:"cluster"`
	Address string    `json:"address"`
	Since   time.Time `json:"since"`
}

// Open reads the file, or begins with none.
func Open(dir string) *Keeper {
	k := &Keeper{path: filepath.Join(dir, fileName), version: 1, changed: make(chan struct{})}
	raw, err := os.ReadFile(k.path)
	var entries []entry
	if err == nil {
		err = json.Unmarshal(raw, &entries)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.Lost = fmt.Errorf("%s: %w", k.path, err)
		return k
	}
	for _, e := range entries[:min(len(entries), Most)] {
		k.list = append(k.list, &configv1.DrainedEndpoint{Cluster: e.Cluster, Address: e.Address, SinceUnixMs: e.Since.UnixMilli()})
	}
	slices.SortFunc(k.list, order)
	return k
}

func order(a, b *configv1.DrainedEndpoint) int {
	return cmp.Or(cmp.Compare(a.GetCluster(), b.GetCluster()), cmp.Compare(a.GetAddress(), b.GetAddress()))
}

// Since is the drained endpoints, their version, and a channel that is closed with the next one.
func (k *Keeper) Since() (list []*configv1.DrainedEndpoint, version uint64, next <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.list, k.version, k.changed
}

// Drained tells whether an endpoint is drained.
func (k *Keeper) Drained(cluster, address string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, there := k.find(cluster, address)
	return there
}

func (k *Keeper) find(cluster, address string) (int, bool) {
	return slices.BinarySearchFunc(k.list, &configv1.DrainedEndpoint{Cluster: cluster, Address: address}, order)
}

// ErrTooMany refuses to drain more than Most.
var ErrTooMany = fmt.Errorf("%d endpoints are drained already", Most)

// Set drains an endpoint, or puts it back; changed is false when it was so already. An error changes nothing.
func (k *Keeper) Set(cluster, address string, drained bool, now time.Time) (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, there := k.find(cluster, address)
	if there == drained {
		return false, nil
	}
	list := slices.Clone(k.list)
	if drained {
		if len(list) >= Most {
			return false, ErrTooMany
		}
		list = slices.Insert(list, at, &configv1.DrainedEndpoint{Cluster: cluster, Address: address, SinceUnixMs: now.UnixMilli()})
	} else {
		list = slices.Delete(list, at, at+1)
	}
	if err := k.save(list); err != nil {
		return false, err
	}
	k.list = list
	k.version++
	close(k.changed)
	k.changed = make(chan struct{})
	return true, nil
}

// save replaces the file, so that a crash leaves the one before or this one.
func (k *Keeper) save(list []*configv1.DrainedEndpoint) error {
	entries := make([]entry, 0, len(list))
	for _, d := range list {
		entries = append(entries, entry{d.GetCluster(), d.GetAddress(), time.UnixMilli(d.GetSinceUnixMs()).UTC()})
	}
	text, err := json.MarshalIndent(entries, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(k.path), fileName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(append(text, '\n'))
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), k.path)
}
