package history

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/snapshot"
)

func snap(t *testing.T, name string) *snapshot.Snapshot {
	t.Helper()
	b := snapshot.NewBuilder()
	b.Add(&configv1.Object{Kind: "cluster", Name: name, Body: &configv1.Object_Cluster{Cluster: &configv1.Cluster{Name: name}}}, snapshot.Place{File: "a.hcl", Line: 7, Column: 1})
	b.Add(&configv1.Object{Kind: "runtime", Body: &configv1.Object_Runtime{Runtime: &configv1.Runtime{Workers: 3}}}, snapshot.Place{})
	s, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestLast holds that the newest snapshot comes back whole, places included, and that only the newest twenty stay.
func TestLast(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	if last, damaged := s.Last(); last != nil || damaged != nil {
		t.Fatalf("an empty store has %v, %v", last, damaged)
	}
	now := time.UnixMilli(1_700_000_000_123)
	parent := ""
	for i := range Kept + 5 {
		x := snap(t, fmt.Sprintf("c%d", i))
		if err := s.Save(x, parent, now); err != nil {
			t.Fatal(err)
		}
		last, damaged := s.Last()
		if last == nil || damaged != nil || last.Snapshot.ID != x.ID || last.Parent != parent || !last.Saved.Equal(now) || len(last.Snapshot.Objects) != 2 {
			t.Fatalf("after %d: %+v, %v", i, last, damaged)
		}
		if p, ok := last.Snapshot.Where("cluster", fmt.Sprintf("c%d", i), "endpoints[3]"); !ok || p.Line != 7 {
			t.Fatalf("place %+v %v", p, ok)
		}
		parent = x.ID
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) != Kept {
		t.Errorf("%d files, %v", len(entries), err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", e.Name(), info.Mode(), err)
		}
	}
}

// TestDamaged holds that a file that is not what it was is set aside for the one before it, and never served.
func TestDamaged(t *testing.T) {
	for name, damage := range map[string]func(data []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut":       func(d []byte) []byte { return d[:len(d)/2] },
		"no object": func(d []byte) []byte { return []byte(strings.Replace(string(d), `"objects":"`, `"objekts":"`, 1)) },
		"a byte": func(d []byte) []byte {
			i := strings.Index(string(d), `"objects":"`) + len(`"objects":"`) + 60
			c := byte('A')
			if d[i] == c {
				c = 'B'
			}
			d[i] = c
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			good, bad := snap(t, "good"), snap(t, "bad")
			if err := s.Save(good, "", time.Now()); err != nil {
				t.Fatal(err)
			}
			if err := s.Save(bad, good.ID, time.Now()); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(s.dir, "00000002-"+bad.ID+".snapshot")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			last, damaged := s.Last()
			if last == nil || last.Snapshot.ID != good.ID || len(damaged) != 1 {
				t.Errorf("%+v, %v", last, damaged)
			}
		})
	}
}

// FuzzRead holds that no file makes the store panic or serve a snapshot that is not what its name says.
func FuzzRead(f *testing.F) {
	b := snapshot.NewBuilder()
	b.Add(&configv1.Object{Kind: "runtime", Body: &configv1.Object_Runtime{Runtime: &configv1.Runtime{Workers: 3}}}, snapshot.Place{})
	x, err := b.Build()
	if err != nil {
		f.Fatal(err)
	}
	s, err := Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Save(x, "", time.Now()); err != nil {
		f.Fatal(err)
	}
	base := "00000001-" + x.ID + ".snapshot"
	data, err := os.ReadFile(filepath.Join(s.dir, base))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"id":"` + x.ID + `","objects":"CgA="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &Store{dir: t.TempDir()}
		if err := os.WriteFile(filepath.Join(s.dir, base), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if last, _ := s.Last(); last != nil && last.Snapshot.ID != x.ID {
			t.Errorf("serves %s", last.Snapshot.ID)
		}
	})
}
