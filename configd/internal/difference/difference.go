// Package difference compares two snapshots: which objects and fields differ, where they are written, and what the change does
// to connections. It knows the contract by reflection, so a new field of config/v1 is compared without a line here.
package difference

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/snapshot"
)

const (
	added   = configv1.Operation_OPERATION_ADDED
	removed = configv1.Operation_OPERATION_REMOVED
	changed = configv1.Operation_OPERATION_CHANGED
)

// Compare lists what differs, in the order in which objects are applied. Lines that moved are no difference.
func Compare(before, after *snapshot.Snapshot) []*configv1.Change {
	was, is := byName(before), byName(after)
	var out []*configv1.Change
	for _, o := range after.Objects {
		c := comparison{object: o, after: after, before: before}
		if old := was[id(o)]; old == nil {
			c.add(added, "", "", "", nil)
		} else if string(old.GetHash()) != string(o.GetHash()) {
			c.messages("", snapshot.Body(old).ProtoReflect(), snapshot.Body(o).ProtoReflect(), nil)
		}
		out = append(out, c.found...)
	}
	for _, o := range before.Objects {
		if is[id(o)] == nil {
			c := comparison{object: o, after: before, before: before}
			c.add(removed, "", "", "", nil)
			out = append(out, c.found...)
		}
	}
	return out
}

func id(o *configv1.Object) string { return o.GetKind() + "\x00" + o.GetName() }

func byName(s *snapshot.Snapshot) map[string]*configv1.Object {
	out := make(map[string]*configv1.Object, len(s.Objects))
	for _, o := range s.Objects {
		out[id(o)] = o
	}
	return out
}

// comparison is that of one object.
type comparison struct {
	object        *configv1.Object
	before, after *snapshot.Snapshot
	found         []*configv1.Change
}

func (c *comparison) add(op configv1.Operation, field, before, after string, at *configv1.Source) {
	change := &configv1.Change{
		Operation: op, Kind: c.object.GetKind(), Name: c.object.GetName(), Field: field, Before: before, After: after, Source: at,
		Effect: effect(c.object.GetKind(), field, op),
	}
	if at == nil {
		from := c.after
		if op == removed {
			from = c.before
		}
		if p, ok := from.Where(change.Kind, change.Name, placeOf(field)); ok && p.File != "" {
			change.Source = &configv1.Source{File: p.File, Line: uint32(p.Line), Column: uint32(p.Column)}
		}
	}
	c.found = append(c.found, change)
}

// placeOf is the attribute of the language that a field of the contract comes from, as far as places are kept.
func placeOf(field string) string {
	top, _, _ := strings.Cut(field, "[")
	top, _, _ = strings.Cut(top, ".")
	switch top {
	case "addresses":
		return "address"
	case "per_connection_buffer_limit_bytes":
		return "buffer_limit"
	}
	return strings.TrimSuffix(top, "_ms")
}

// messages compares two messages of one type. at is where the nearest enclosing thing with a source is written.
func (c *comparison) messages(path string, a, b protoreflect.Message, at *configv1.Source) {
	fields := a.Descriptor().Fields()
	if s := source(b); s != nil {
		at = s
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if isSource(f) || (!a.Has(f) && !b.Has(f)) {
			continue
		}
		name := join(path, string(f.Name()))
		switch {
		case f.IsList() && f.Message() != nil:
			c.lists(name, a.Get(f).List(), b.Get(f).List(), at)
		case f.IsList():
			c.values(name, f, a.Get(f).List(), b.Get(f).List(), at)
		case f.Message() != nil && a.Has(f) && b.Has(f):
			c.messages(name, a.Get(f).Message(), b.Get(f).Message(), at)
		case f.Message() != nil && b.Has(f):
			c.add(added, name, "", "", at)
		case f.Message() != nil:
			c.add(removed, name, "", "", at)
		default:
			x, y := text(f, a.Get(f), a.Has(f)), text(f, b.Get(f), b.Has(f))
			if x != y {
				c.add(changed, name, x, y, at)
			}
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func isSource(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && f.Message().FullName() == "retinue.config.v1.Source"
}

func source(m protoreflect.Message) *configv1.Source {
	f := m.Descriptor().Fields().ByName("source")
	if f == nil || !isSource(f) || !m.Has(f) {
		return nil
	}
	s, _ := m.Get(f).Message().Interface().(*configv1.Source)
	return s
}

// lists compares lists of messages, whose elements are known by name, address or cluster.
func (c *comparison) lists(path string, a, b protoreflect.List, at *configv1.Source) {
	was, is := keys(a), keys(b)
	placed := func(s *configv1.Source) *configv1.Source {
		if s != nil {
			return s
		}
		return at
	}
	for i, key := range is {
		name := path + "[" + key + "]"
		if j := slices.Index(was, key); j >= 0 {
			c.messages(name, a.Get(j).Message(), b.Get(i).Message(), at)
		} else {
			c.add(added, name, "", "", placed(source(b.Get(i).Message())))
		}
	}
	var stayed []string
	for j, key := range was {
		if slices.Contains(is, key) {
			stayed = append(stayed, key)
			continue
		}
		c.add(removed, path+"["+key+"]", "", "", placed(source(a.Get(j).Message())))
	}
	now := slices.DeleteFunc(slices.Clone(is), func(key string) bool { return !slices.Contains(was, key) })
	if !slices.Equal(stayed, now) {
		c.add(changed, path, strings.Join(stayed, ", "), strings.Join(now, ", "), at)
	}
}

// keys names the elements of a list; what has no name of its own is numbered, as is the second of a name.
func keys(l protoreflect.List) []string {
	out := make([]string, l.Len())
	seen := map[string]int{}
	for i := range out {
		m := l.Get(i).Message()
		for _, name := range []protoreflect.Name{"name", "address", "cluster"} {
			if f := m.Descriptor().Fields().ByName(name); f != nil && f.Kind() == protoreflect.StringKind && m.Has(f) {
				out[i] = m.Get(f).String()
				break
			}
		}
		if out[i] == "" {
			out[i] = strconv.Itoa(i)
		}
		seen[out[i]]++
		if n := seen[out[i]]; n > 1 {
			out[i] += "#" + strconv.Itoa(n)
		}
	}
	return out
}

// values compares lists of plain values: what went and what came, or the order.
func (c *comparison) values(path string, f protoreflect.FieldDescriptor, a, b protoreflect.List, at *configv1.Source) {
	texts := func(l protoreflect.List) (out []string) {
		for i := range l.Len() {
			out = append(out, text(f, l.Get(i), true))
		}
		return out
	}
	was, is := texts(a), texts(b)
	found := len(c.found)
	for _, x := range is {
		if !slices.Contains(was, x) {
			c.add(added, path, "", x, at)
		}
	}
	for _, x := range was {
		if !slices.Contains(is, x) {
			c.add(removed, path, x, "", at)
		}
	}
	if len(c.found) == found && !slices.Equal(was, is) {
		c.add(changed, path, strings.Join(was, ", "), strings.Join(is, ", "), at)
	}
}

// text writes a value for people.
func text(f protoreflect.FieldDescriptor, v protoreflect.Value, has bool) string {
	if !has && f.HasPresence() {
		return ""
	}
	switch f.Kind() {
	case protoreflect.StringKind:
		return strconv.Quote(v.String())
	case protoreflect.BytesKind:
		return fmt.Sprintf("%d bytes", len(v.Bytes()))
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			return strings.ToLower(string(e.Name()))
		}
	case protoreflect.Int64Kind:
		if strings.HasSuffix(string(f.Name()), "_ms") {
			return (time.Duration(v.Int()) * time.Millisecond).String()
		}
	}
	return v.String()
}

// effect says what a change does to connections that exist.
func effect(kind, field string, op configv1.Operation) string {
	top, rest, _ := strings.Cut(field, "[")
	switch {
	case kind == "listener" && field == "" && op == removed:
		return "its connections drain"
	case kind == "listener" && (top == "addresses" || field == "tcp_defer_accept"):
		return "the listener gets new sockets, and the connections of the old ones drain"
	case kind == "cluster" && field == "" && op == removed:
		return "idle connections close, requests under way finish"
	case kind == "cluster" && top == "endpoints" && !strings.Contains(rest, "].") && op == removed:
		return "idle connections to it close, requests under way finish"
	case kind == "cluster" && top == "endpoints" && strings.HasSuffix(rest, "].weight"):
		return "idle connections to it close, requests under way finish"
	case kind == "cluster" && field == "discovery.dns.logical":
		return "its endpoints are others: idle connections to those before close, requests under way finish"
	case kind == "runtime" && field == "workers":
		return "takes effect with the next generation: retinue upgrade"
	case kind == "stats" && field == "listen":
		return "the old address is closed"
	}
	return ""
}

// Text writes changes for a terminal, grouped by object.
func Text(list []*configv1.Change) string {
	var b strings.Builder
	last := ""
	for _, c := range list {
		title := strings.TrimSpace(c.GetKind() + " " + c.GetName())
		mark := map[configv1.Operation]string{added: "+", removed: "-", changed: "~"}[c.GetOperation()]
		where := ""
		if s := c.GetSource(); s.GetFile() != "" {
			where = fmt.Sprintf("  (%s:%d)", s.GetFile(), s.GetLine())
		}
		if c.GetField() == "" {
			fmt.Fprintf(&b, "%s %s%s\n", mark, title, where)
			last = ""
		} else {
			if title != last {
				fmt.Fprintf(&b, "~ %s\n", title)
				last = title
			}
			value := c.GetAfter()
			switch {
			case c.GetOperation() == changed:
				value = orNone(c.GetBefore()) + " → " + orNone(c.GetAfter())
			case c.GetOperation() == removed:
				value = c.GetBefore()
			}
			fmt.Fprintf(&b, "    %s %s%s\n", mark, strings.TrimSpace(c.GetField()+" "+value), where)
		}
		if c.GetEffect() != "" {
			fmt.Fprintf(&b, "      %s\n", c.GetEffect())
		}
	}
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
