// Package history owns the snapshots on disk: the last twenty that were in force, the newest of them the last-good one.
package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/snapshot"
	"retinue.dev/configd/internal/syntax"
)

// Kept is the number of snapshots that stay on disk.
const Kept = 20

// maxFile bounds a file that is read back: 200,000 objects are far below it.
const maxFile = 512 << 20

// Store is one directory of files NUMBER-ID.snapshot. One process writes it; a file is complete or not there.
type Store struct{ dir string }

// Entry is one kept snapshot.
type Entry struct {
	Snapshot *snapshot.Snapshot
	Parent   string
	Saved    time.Time
}

// file is the form on disk. Objects is an encoded config/v1 Prepare with the bodies of all objects.
type file struct {
	ID      string                    `json:"id"`
	Parent  string                    `json:"parent,omitempty"`
	Saved   int64                     `json:"saved_unix_ms"`
	Objects []byte                    `json:"objects"`
	Places  map[string]snapshot.Place `json:"places"`
}

// Open makes the directory when it is not there.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of snapshots: %w", err)
	}
	return &Store{dir: dir}, nil
}

var name = regexp.MustCompile(`^([0-9]{8})-([0-9a-f]{12})\.snapshot$`)

// Save adds a snapshot as the newest and removes what is older than Kept.
func (s *Store) Save(snap *snapshot.Snapshot, parent string, now time.Time) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	number := 1
	if len(names) > 0 {
		last, _ := strconv.Atoi(name.FindStringSubmatch(names[len(names)-1])[1])
		number = last + 1
	}
	objects, err := proto.MarshalOptions{Deterministic: true}.Marshal(&configv1.Prepare{SnapshotId: snap.ID, ParentId: parent, Changed: snap.Objects})
	if err != nil {
		return fmt.Errorf("encode snapshot %s: %w", snap.ID, err)
	}
	data, err := json.Marshal(file{ID: snap.ID, Parent: parent, Saved: now.UnixMilli(), Objects: objects, Places: snap.Places()})
	if err != nil {
		return fmt.Errorf("encode snapshot %s: %w", snap.ID, err)
	}
	if err := s.write(fmt.Sprintf("%08d-%s.snapshot", number, snap.ID), data); err != nil {
		return fmt.Errorf("keep snapshot %s in %s: %w", snap.ID, s.dir, err)
	}
	for len(names) >= Kept {
		_ = os.Remove(filepath.Join(s.dir, names[0])) // tried again with the next one
		names = names[1:]
	}
	return nil
}

// write makes the file complete before it has its name.
func (s *Store) write(base string, data []byte) (err error) {
	tmp, err := os.CreateTemp(s.dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), filepath.Join(s.dir, base)); err != nil {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// names lists the files, oldest first.
func (s *Store) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list the kept snapshots: %w", err)
	}
	var out []string
	for _, e := range entries {
		if name.MatchString(e.Name()) {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// Last returns the newest snapshot that is whole; nil when there is none. damaged names files that are not what they
// should be, newest first.
func (s *Store) Last() (last *Entry, damaged []error) {
	names, err := s.names()
	if err != nil {
		return nil, []error{err}
	}
	for _, n := range slices.Backward(names) {
		e, err := s.read(n)
		if err == nil {
			return e, damaged
		}
		damaged = append(damaged, fmt.Errorf("%s: %w", filepath.Join(s.dir, n), err))
	}
	return nil, damaged
}

// All returns the kept snapshots that are whole, newest first.
func (s *Store) All() ([]*Entry, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var out []*Entry
	for _, n := range slices.Backward(names) {
		if e, err := s.read(n); err == nil {
			out = append(out, e)
		}
	}
	return out, nil
}

// Find returns the newest kept snapshot whose id begins with text, nil when there is none; ids that differ are an error.
func (s *Store) Find(text string) (*Entry, error) {
	all, err := s.All()
	if err != nil {
		return nil, err
	}
	var found *Entry
	for _, e := range all {
		switch {
		case !strings.HasPrefix(e.Snapshot.ID, text):
		case found == nil:
			found = e
		case found.Snapshot.ID != e.Snapshot.ID:
			return nil, fmt.Errorf("%q begins the ids of several kept snapshots: write more of it", text)
		}
	}
	return found, nil
}

// pinFile says that a kept snapshot was put in force by hand.
const pinFile = "pinned.json"

// Pin is a roll-back that outlives configd: while the files still compile to Files, To is served and not they.
type Pin struct {
	To    string `json:"to"`
	Files string `json:"files"` // "": they did not compile
}

// SetPin keeps a pin; nil removes it.
func (s *Store) SetPin(p *Pin) error {
	if p == nil {
		if err := os.Remove(filepath.Join(s.dir, pinFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return s.write(pinFile, data)
}

// Pinned returns the pin, nil when there is none.
func (s *Store) Pinned() *Pin {
	data, err := syntax.ReadFile(filepath.Join(s.dir, pinFile), 4096)
	if err != nil {
		return nil
	}
	var p Pin
	if json.Unmarshal(data, &p) != nil || p.To == "" {
		return nil
	}
	return &p
}

func (s *Store) read(base string) (*Entry, error) {
	data, err := syntax.ReadFile(filepath.Join(s.dir, base), maxFile)
	if err != nil {
		return nil, err
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	var p configv1.Prepare
	if err := proto.Unmarshal(f.Objects, &p); err != nil {
		return nil, err
	}
	b := snapshot.NewBuilder()
	var hashes [][]byte
	for _, o := range p.GetChanged() {
		if !snapshot.Complete(o) {
			return nil, fmt.Errorf("object %q of kind %q is not one that this version knows", o.GetName(), o.GetKind())
		}
		hashes = append(hashes, o.GetHash())
		b.Add(o, snapshot.Place{})
	}
	b.Restore(f.Places)
	snap, err := b.Build()
	if err != nil {
		return nil, err
	}
	for i, o := range snap.Objects {
		if !bytes.Equal(o.GetHash(), hashes[i]) {
			return nil, fmt.Errorf("%s %q is not what was kept", o.GetKind(), o.GetName())
		}
	}
	if snap.ID != f.ID || f.ID != name.FindStringSubmatch(base)[2] {
		return nil, fmt.Errorf("holds snapshot %s and calls it %s", snap.ID, f.ID)
	}
	return &Entry{Snapshot: snap, Parent: f.Parent, Saved: time.UnixMilli(f.Saved)}, nil
}
