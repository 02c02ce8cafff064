// Package freelist keeps what filters need for one stream, so that no stream allocates. A list belongs to one worker.
package freelist

// most bounds a list: what a burst needed beyond it goes back to the heap.
const most = 256

// List is what is not in use.
type List[T any] struct {
	free []*T
	_    [104]byte // lists of two workers share no cache line
}

// Take is one of the list, as Give left it, or a new one.
func (l *List[T]) Take() *T {
	n := len(l.free)
	if n == 0 {
		return new(T)
	}
	t := l.free[n-1]
	l.free = l.free[:n-1]
	return t
}

// Give takes back what is not used any more. The caller does not touch it afterwards: another stream may have it.
func (l *List[T]) Give(t *T) {
	if len(l.free) < most {
		l.free = append(l.free, t)
	}
}
