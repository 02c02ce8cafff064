// Package snapshot owns the compiled configuration: objects with their hashes in the order in which they are applied,
// the snapshot's id made from them, which role receives which, and where each was written.
package snapshot

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"
)

// Place is where something was written; File is relative to the configuration's directory.
type Place struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
	// Length is that of the marked text on the line, for an underline.
	Length int `json:"length,omitempty"`
}

// Snapshot is immutable once made; anybody may read it from any goroutine.
type Snapshot struct {
	ID      string
	Objects []*configv1.Object
	// Secrets is what the objects name; not part of the id. Whoever receives it never logs or keeps it readable for others.
	Secrets *configv1.Secrets
	places  map[string]Place
}

// With is the same snapshot with other secrets.
func (s *Snapshot) With(secrets *configv1.Secrets) *Snapshot {
	next := *s
	next.Secrets = secrets
	return &next
}

// Builder collects objects in any order.
type Builder struct {
	objects []*configv1.Object
	places  map[string]Place
}

// NewBuilder returns an empty builder.
func NewBuilder() *Builder { return &Builder{places: map[string]Place{}} }

// Add takes an object that was written at p.
func (b *Builder) Add(o *configv1.Object, p Place) {
	b.objects = append(b.objects, o)
	b.Mark(o.GetKind(), o.GetName(), "", p)
}

// Mark notes where a field of an object was written: "address[1]", "path".
func (b *Builder) Mark(kind, name, field string, p Place) { b.places[key(kind, name, field)] = p }

func key(kind, name, field string) string { return kind + "\x00" + name + "\x00" + field }

// Restore replaces all places by those of a kept snapshot (Places).
func (b *Builder) Restore(places map[string]Place) { b.places = places }

// Places gives every place by its key, for keeping.
func (s *Snapshot) Places() map[string]Place { return s.places }

// order is that of application: what is named comes before what names it.
var order = []string{"runtime", "stats", "tracing", "access_log", "certificate", "cluster", "plugin", "filter", "http", "listener"}

// Build hashes the objects and names the snapshot. The same objects give the same id, whatever order they were added in.
func (b *Builder) Build() (*Snapshot, error) {
	slices.SortStableFunc(b.objects, func(x, y *configv1.Object) int {
		return cmp.Or(cmp.Compare(slices.Index(order, x.GetKind()), slices.Index(order, y.GetKind())), strings.Compare(x.GetName(), y.GetName()))
	})
	id := sha256.New()
	var buf []byte
	for _, o := range b.objects {
		var err error
		if buf, err = (proto.MarshalOptions{Deterministic: true}).MarshalAppend(buf[:0], Body(o)); err != nil {
			return nil, fmt.Errorf("encoding %s %q: %w", o.GetKind(), o.GetName(), err)
		}
		sum := sha256.Sum256(buf)
		o.Hash = sum[:]
		_, _ = io.WriteString(id, o.GetKind()+"\x00"+o.GetName()+"\x00")
		id.Write(o.Hash)
	}
	return &Snapshot{ID: hex.EncodeToString(id.Sum(nil))[:12], Objects: b.objects, places: b.places}, nil
}

// Body returns the message inside an object.
func Body(o *configv1.Object) proto.Message {
	m := o.ProtoReflect()
	f := m.WhichOneof(m.Descriptor().Oneofs().ByName("body"))
	return m.Get(f).Message().Interface()
}

// Complete tells whether an object has a known kind and the body of that kind.
func Complete(o *configv1.Object) bool {
	m := o.ProtoReflect()
	f := m.WhichOneof(m.Descriptor().Oneofs().ByName("body"))
	return f != nil && string(f.Name()) == o.GetKind() && slices.Contains(order, o.GetKind())
}

// receives tells which kinds a role is given.
var receives = map[configv1.Role][]string{
	configv1.Role_ROLE_PROXYD:   {"runtime", "access_log", "certificate", "cluster", "plugin", "filter", "http", "listener"},
	configv1.Role_ROLE_STATSD:   {"runtime", "stats", "tracing"},
	configv1.Role_ROLE_RESTARTD: {"runtime", "plugin", "listener"},
}

// For returns the objects of a role in order; nil for an unknown role.
func (s *Snapshot) For(role configv1.Role) []*configv1.Object {
	kinds := receives[role]
	var out []*configv1.Object
	for _, o := range s.Objects {
		if slices.Contains(kinds, o.GetKind()) {
			out = append(out, o)
		}
	}
	return out
}

// Where finds the place of an object's field, of the list that it is in, or of the object itself.
func (s *Snapshot) Where(kind, name, field string) (Place, bool) {
	for {
		if p, ok := s.places[key(kind, name, field)]; ok {
			return p, true
		}
		if field == "" {
			return Place{}, false
		}
		if i := strings.LastIndexAny(field, ".["); i > 0 {
			field = field[:i]
		} else {
			field = ""
		}
	}
}

// Prepare makes the message that offers the snapshot to a role: references to everything, bodies of what is not held.
func (s *Snapshot) Prepare(role configv1.Role, parent string, have map[string]bool) *configv1.Prepare {
	p := &configv1.Prepare{SnapshotId: s.ID, ParentId: parent}
	if role == configv1.Role_ROLE_PROXYD {
		p.Secrets = s.Secrets
	}
	for _, o := range s.For(role) {
		p.Objects = append(p.Objects, &configv1.ObjectRef{Kind: o.GetKind(), Name: o.GetName(), Hash: o.GetHash()})
		if !have[string(o.GetHash())] {
			p.Changed = append(p.Changed, o)
		}
	}
	return p
}
