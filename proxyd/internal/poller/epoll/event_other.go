//go:build !amd64

package epoll

// event is struct epoll_event with its natural alignment: 16 bytes.
type event struct {
	events uint32
	_      uint32
	token  uint64
}

func (e *event) set(events uint32, token uint64) { e.events, e.token = events, token }

func (e *event) get() (uint32, uint64) { return e.events, e.token }
