//go:build race

package hcm

// raced tells that the race detector is at work. Allocations are no measure then: sync.Pool, where crypto/tls keeps its buffers, forgets
// a part of what it is given, and the compiler inlines less.
const raced = true
