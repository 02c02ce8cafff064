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

	methods uint16   // a bit for each MethodID; 0: any method
	others  []string // methods without a number
	regex   *regexp.Regexp
	when    *conditions // nil: none
}

// plain tells that nothing is asked beyond the path that the entry is listed under.
func (e *Entry) plain() bool {
	return e.methods == 0 && e.others == nil && e.regex == nil && e.when == nil
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
