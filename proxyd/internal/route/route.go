// Package route is the compiled router: virtual hosts and routes of one HTTP connection manager in an immutable table
// that answers as a scan in source order would, without scanning.
package route

import (
	"regexp"

	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

// Entry is one route. It is immutable.
type Entry struct {
	// Ordinal counts the routes of the whole table: what belongs to a route (cluster handles, counters) is kept by
	// its owner in a slice in this order.
	Ordinal int
	// VirtualHost and Index say where the route was written.
	VirtualHost, Index int
	// Host and Route are the objects it was compiled from.
	Host  *configv1.VirtualHost
	Route *configv1.Route

	methods  uint16   // a bit for each MethodID; 0: any method
	template bool     // its path is one, which its place in the index stands for
	others   []string // methods without a number
	regex    *regexp.Regexp
	when     *conditions // nil: none
}

// plain tells that nothing is asked beyond the path that the entry is listed under.
func (e *Entry) plain() bool {
	return e.methods == 0 && e.others == nil && e.regex == nil && e.when == nil
}

// A guard is what a route asks beyond its path, as far as two bytes tell it: a bit for each MethodID, or guardEntry alone, which
// sends to the entry. Lists hold it, because with thousands of routes the entries are far away.
const (
	guardEntry uint16 = 1 << 15
	guardAny          = guardEntry - 1 // nothing is asked
)

// A MethodID is below the bit of guardEntry, and MethodOther, 0, is in no list of methods.
var _ = [1]struct{}{}[header.NumMethods/15+header.MethodOther]

func (e *Entry) guard() uint16 {
	switch {
	case e.others != nil || e.regex != nil || e.when != nil:
		return guardEntry
	case e.methods == 0:
		return guardAny
	}
	return e.methods
}

// admits tells whether a request is that of a route under whose path it is listed.
func (t *Table) admits(ordinal int, guard uint16, r *Request, path []byte) bool {
	if guard == guardEntry {
		return t.entries[ordinal].allows(r, path)
	}
	return guard>>r.ID&1 != 0
}

// allows tells whether a request whose path the entry is listed under is the entry's. path has no query.
func (e *Entry) allows(r *Request, path []byte) bool {
	if e.methods != 0 || e.others != nil {
		if r.ID != header.MethodOther {
			if e.methods>>r.ID&1 == 0 {
				return false
			}
		} else if !e.allowsOther(r.Method) {
			return false
		}
	}
	if e.regex != nil && !e.regex.Match(path) {
		return false
	}
	return e.when == nil || e.when.hold(r)
}

func (e *Entry) allowsOther(method []byte) bool {
	for _, m := range e.others {
		if string(method) == m {
			return true
		}
	}
	return false
}
