package serve

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"retinue.dev/configd/internal/compile"
	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/secret"
	"retinue.dev/configd/internal/snapshot"
	"retinue.dev/configd/internal/syntax"
)

// lookEvery is how often the files of secrets are looked at. What has changed is read when it has stayed the same for one look:
// whoever renews a certificate writes two files.
const lookEvery = time.Second

// furnish gives a snapshot of the history its secrets: those of the files, and where a file is broken the last good ones.
func (s *service) furnish(snap *snapshot.Snapshot) *snapshot.Snapshot {
	loaded, problems := secret.Load(snap, syntax.ReadFile)
	for _, p := range problems {
		s.log.Error("a secret cannot be read; the one before stays", "code", string(diag.InvalidCertificate), "object", p.Kind+" "+p.Name, "problem", p.Message)
	}
	secret.Patch(loaded, s.secrets.Kept())
	return snap.With(s.secrets.Complete(loaded))
}

func (s *service) diagnostic(r *compile.Result, p secret.Problem) diag.Diagnostic {
	d := diag.Diagnostic{Code: diag.InvalidCertificate, Summary: "Certificate cannot be used", Detail: p.Message + "."}
	if place, ok := r.Snapshot.Where(p.Kind, p.Name, p.Field); ok && place.File != "" {
		d.Range = r.Range(place)
	}
	return d
}

// keepSecrets writes what is in force for the next start. The caller may come with nothing new.
func (s *service) keepSecrets() {
	current, _, _ := s.pub.Current()
	if current == nil || current.Secrets == nil || proto.Equal(current.Secrets, s.secrets.Kept()) && s.secretsSaved.Load() {
		return
	}
	if err := s.secrets.Keep(current.Secrets); err != nil {
		s.log.Error("secrets are in force but not kept: after a restart of configd clients do not resume their sessions", "error", err)
		return
	}
	s.secretsSaved.Store(true)
}

// fingerprint is what of a file changes when its content does.
type fingerprint struct {
	inode, size uint64
	modified    int64
}

func look(paths []string) map[string]fingerprint {
	seen := map[string]fingerprint{}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil { // through links: Kubernetes swaps a directory
			f := fingerprint{size: uint64(info.Size()), modified: info.ModTime().UnixNano()}
			if stat, ok := info.Sys().(*syscall.Stat_t); ok {
				f.inode = stat.Ino
			}
			seen[path] = f
		}
	}
	return seen
}

// watchSecrets reads certificates again when their files change, and rotates the keys of session tickets.
func (s *service) watchSecrets(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var taken, before map[string]fingerprint // what is in force was read from, the last look
	var of string                            // the snapshot that they belong to
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		current, _, _ := s.pub.Current()
		if current == nil {
			continue
		}
		now := look(secret.Files(current))
		if of != current.ID {
			of, taken = current.ID, nil // a file may have changed since the compiler read it
		}
		changed, steady := !same(now, taken), same(now, before)
		before = now
		if changed && steady {
			taken = now
			s.renewSecrets(current)
		}
		if s.secrets.Rotate(s.now()) {
			s.rotateTickets()
		}
	}
}

func same(a, b map[string]fingerprint) bool {
	if len(a) != len(b) {
		return false
	}
	for path, f := range a {
		if b[path] != f {
			return false
		}
	}
	return true
}

// renewSecrets reads the files of the snapshot in force again. Nothing changes where one of them is broken.
func (s *service) renewSecrets(of *snapshot.Snapshot) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	current, _, _ := s.pub.Current()
	if current == nil || current.ID != of.ID {
		return // a reload has read them
	}
	loaded, problems := secret.Load(current, syntax.ReadFile)
	if len(problems) > 0 {
		for _, p := range problems {
			at := ""
			if place, ok := current.Where(p.Kind, p.Name, p.Field); ok {
				at = fmt.Sprintf("%s:%d:%d", place.File, place.Line, place.Column)
			}
			s.log.Error("a changed secret is not taken; the one before stays", "code", string(diag.InvalidCertificate), "at", at, "object", p.Kind+" "+p.Name, "problem", p.Message)
		}
		s.record(false, problems[0].Message)
		s.describe()
		return
	}
	s.secrets.Complete(loaded)
	if proto.Equal(loaded, current.Secrets) {
		return
	}
	s.pub.Renew(loaded)
	s.keepSecrets()
	s.record(true, "")
	s.describe()
	s.log.Info("secrets renewed", "certificates", len(loaded.GetCertificates()), "files", len(loaded.GetFiles()))
}

// rotateTickets delivers a new key of session tickets.
func (s *service) rotateTickets() {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	current, _, _ := s.pub.Current()
	if current == nil || current.Secrets == nil {
		return
	}
	next := proto.CloneOf(current.Secrets)
	s.pub.Renew(s.secrets.Complete(next))
	s.secretsSaved.Store(false)
	s.keepSecrets()
	s.log.Info("the key of session tickets was rotated")
}
