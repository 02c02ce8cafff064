// Package buildinfo tells which release and commit a binary was built from.
package buildinfo

import (
	"runtime/debug"
	"sync"
)

// Version is the release; the Makefile sets it.
var Version = "dev"

// revision is the commit; the Makefile sets it, else the Go tool's record is used.
var revision string

// Revision is the commit that the binary was built from, "unknown" when nobody recorded it.
var Revision = sync.OnceValue(func() string {
	if revision != "" {
		return revision
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
})
