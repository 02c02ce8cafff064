//go:build race

package overload

// raced tells that the race detector is at work. It keeps shadows of all memory that was ever touched beside the heap.
const raced = true
