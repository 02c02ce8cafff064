package epoll

// event is struct epoll_event, which is packed on amd64: 12 bytes.
type event struct {
	events  uint32
	low, up uint32
}

func (e *event) set(events uint32, token uint64) {
	e.events, e.low, e.up = events, uint32(token), uint32(token>>32)
}

func (e *event) get() (uint32, uint64) { return e.events, uint64(e.low) | uint64(e.up)<<32 }
