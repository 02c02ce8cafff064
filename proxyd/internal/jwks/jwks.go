// Package jwks follows the key sets that providers of tokens have elsewhere. It runs on the main side: a server that is slow or
// says nonsense is no worker's business.
//
// Each provider has one goroutine, which fetches its set when the provider appears, again a little before the set's time is over, after a
// failure with a growing delay, and when a worker has met a token whose key is not in the set, which a provider allows now and then.
// So there is one fetch at a time. What was fetched stays in force until another set is here, however long that takes; a copy in the
// state directory serves the next generation until then.
package jwks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"retinue.dev/libs/jwk"
	"retinue.dev/proxyd/internal/filter/jwt"
)

const (
	// ahead is how long before its time is over a set is fetched again (Envoy's); half the time where that is short.
	ahead = 5 * time.Second
	// A fetch that failed is tried again after a random time up to a bound, which doubles from the first to the second.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// keptFor is how long a copy serves a process that has just begun.
	keptFor = 24 * time.Hour
)

// Options are the follower's surroundings.
type Options struct {
	Log *slog.Logger
	// Dir is where copies are kept; "": nowhere.
	Dir string
	// Fetch asks for a set.
	Fetch func(context.Context, *jwt.Remote) ([]byte, error)
	// Settle has every worker call the provider's Settle.
	Settle func(*jwt.Provider)
	// Count is told how each fetch ended.
	Count func(p *jwt.Provider, fetched bool)
}

// Follower follows the sets of a process. Life: New, Set for each snapshot, Close.
type Follower struct {
	opt Options

	mu        sync.Mutex
	following map[*jwt.Provider]followed
	closed    bool
	done      sync.WaitGroup
}

// followed is a provider's goroutine.
type followed struct {
	cancel context.CancelFunc
	wanted chan struct{} // of one place: its keys are wanted at once
}

// New makes one that follows nothing yet.
func New(opt Options) *Follower {
	return &Follower{opt: opt, following: map[*jwt.Provider]followed{}}
}

// Look fetches the keys that workers want (jwt.Provider.Wanted).
func (f *Follower) Look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p, one := range f.following {
		if p.Wanted() {
			select {
			case one.wanted <- struct{}{}:
			default: // it is told
			}
		}
	}
}

// Set takes the providers of a snapshot.
func (f *Follower) Set(providers []*jwt.Provider) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.sweep(providers)
	stay := map[*jwt.Provider]bool{}
	for _, p := range providers {
		stay[p] = true
		if f.following[p].cancel != nil {
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		one := followed{cancel, make(chan struct{}, 1)}
		f.following[p] = one
		f.done.Go(func() { f.follow(ctx, p, one.wanted) })
	}
	for p, one := range f.following {
		if !stay[p] {
			one.cancel()
			delete(f.following, p)
		}
	}
}

// Close ends everything.
func (f *Follower) Close() {
	f.mu.Lock()
	f.closed = true
	for _, one := range f.following {
		one.cancel()
	}
	f.mu.Unlock()
	f.done.Wait()
}

// follow is the life of one provider.
func (f *Follower) follow(ctx context.Context, p *jwt.Provider, wanted <-chan struct{}) {
	defer func() { // there are no keys to come: who waits for them hears of it
		p.Retire()
		f.opt.Settle(p)
	}()
	last := f.recall(p)
	failures := 0
	for {
		if p.Begin() {
			f.opt.Log.Info("a token names a key that is not in the set, which is fetched for it", "jwt_provider", p.Name, "host", p.Remote.Host)
		}
		content, set, err := f.fetch(ctx, p)
		if ctx.Err() != nil {
			return
		}
		f.opt.Count(p, err == nil)
		wait := p.Remote.CacheFor - min(ahead, p.Remote.CacheFor/2)
		switch {
		case err != nil:
			most := min(firstRetry<<min(failures, 10), lastRetry)
			wait = most/2 + rand.N(most/2)
			failures++
			p.Fail()
			f.opt.Log.Warn("a key set cannot be fetched; the one before stays, if there is one", "jwt_provider", p.Name, "host", p.Remote.Host, "error", err, "retry_in", wait.Round(time.Millisecond).String())
		case bytes.Equal(content, last):
			p.Same()
			f.keep(p, content, set)
		default:
			p.Take(set)
			f.keep(p, content, set)
			f.opt.Log.Info("a key set was fetched", "jwt_provider", p.Name, "host", p.Remote.Host, "keys", set.Len(), "left_out", len(set.Skipped))
		}
		if err == nil {
			last, failures = content, 0
		}
		f.opt.Settle(p)
		if !rest(ctx, p, wanted, wait) {
			return
		}
	}
}

// rest waits for a time, or until the keys are wanted; false where that is over for good.
func rest(ctx context.Context, p *jwt.Provider, wanted <-chan struct{}, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-wanted:
			if p.Wanted() { // else the fetch before was told so too
				return true
			}
		}
	}
}

func (f *Follower) fetch(ctx context.Context, p *jwt.Provider) ([]byte, *jwk.Set, error) {
	ctx, cancel := context.WithTimeout(ctx, p.Remote.Timeout)
	defer cancel()
	content, err := f.opt.Fetch(ctx, p.Remote)
	if err != nil {
		return nil, nil, err
	}
	set, err := jwk.Parse(content)
	return content, set, err
}

// sweep removes copies that serve nobody any more.
func (f *Follower) sweep(providers []*jwt.Provider) {
	if f.opt.Dir == "" {
		return
	}
	used := map[string]bool{}
	for _, p := range providers {
		used[f.path(p)] = true
	}
	list, _ := filepath.Glob(filepath.Join(f.opt.Dir, "jwks-*"))
	for _, path := range list {
		if info, err := os.Stat(path); err == nil && !used[path] && time.Since(info.ModTime()) > keptFor {
			_ = os.Remove(path) // another generation may have done it
		}
	}
}

// path is where the copy of a provider's set is.
func (f *Follower) path(p *jwt.Provider) string {
	of := sha256.Sum256([]byte(p.Name + "\x00" + p.Remote.Host + "\x00" + p.Remote.Path))
	return filepath.Join(f.opt.Dir, fmt.Sprintf("jwks-%x.json", of[:8]))
}

// recall puts the copy in force and answers what is in it.
func (f *Follower) recall(p *jwt.Provider) []byte {
	if f.opt.Dir == "" || p.Ready() {
		return nil
	}
	path := f.path(p)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(info.ModTime()) > max(keptFor, p.Remote.CacheFor) {
		return nil
	}
	var content []byte
	if err == nil && info.Size() > jwk.MaxSize {
		err = errors.New("it is too large")
	}
	if err == nil {
		content, err = os.ReadFile(path)
	}
	var set *jwk.Set
	if err == nil {
		set, err = jwk.Parse(content)
	}
	if err != nil {
		f.opt.Log.Warn("the copy of a key set is of no use", "jwt_provider", p.Name, "path", path, "error", err)
		return nil
	}
	p.Take(set)
	f.opt.Settle(p)
	return content
}

// keep writes the copy, or says that the one that is there holds. Secrets are not kept.
func (f *Follower) keep(p *jwt.Provider, content []byte, set *jwk.Set) {
	if f.opt.Dir == "" || set.Secret || set.Private {
		return
	}
	now, path := time.Now(), f.path(p)
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, content) && os.Chtimes(path, now, now) == nil {
		return
	}
	err := func() error {
		file, err := os.CreateTemp(f.opt.Dir, "jwks-*.tmp") // of mode 0600
		if err != nil {
			return err
		}
		defer os.Remove(file.Name())
		_, err = file.Write(content)
		if err = errors.Join(err, file.Close()); err != nil {
			return err
		}
		return os.Rename(file.Name(), path)
	}()
	if err != nil {
		f.opt.Log.Warn("a key set is not kept for the next generation", "jwt_provider", p.Name, "error", err)
	}
}
