package http2

import (
	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/hpack"
)

// Stream is one stream of a session, embedded in the memory that the codec keeps for the exchange. The session fills it
// when the stream begins; it is in the session's table until OnClosed.
type Stream struct {
	// Owner is the codec's memory around the stream: set once, when that is made.
	Owner any

	id                 uint32
	sendWindow         int32
	recvWindow         int32
	credit             uint32 // bytes read that the peer was not yet told of
	held               uint32 // bytes read while the stream was paused: not credited anywhere
	pauses             int32
	length             int64 // bytes that Content-Length still promises; -1: none does
	pending            buffer.Chain
	trailers           header.Block // wait behind pending
	next, prev         *Stream      // all streams of the session
	chain              *Stream      // of the table
	waitNext, waitPrev *Stream      // those with something to send
	open               bool         // in the table
	headSeen           bool         // the peer's head came
	remoteEnded        bool
	localEnded         bool // END_STREAM is written
	sendEnd            bool // END_STREAM follows pending
	sendTrailers       bool // trailers follow pending
	waiting            bool
	above              bool
	answered           bool // we sent a head
	tunnel             bool
	noLength           bool // Content-Length says nothing about the bytes that come
}

// ID is the number of the stream; that of an ended one stays until the memory is used again.
func (st *Stream) ID() uint32 { return st.id }

// Open tells that the stream is in its session.
func (st *Stream) Open() bool { return st.open }

// RemoteEnded tells that the peer has sent its END_STREAM.
func (st *Stream) RemoteEnded() bool { return st.remoteEnded }

// Buffered is the bytes that wait for a window of the peer.
func (st *Stream) Buffered() int { return st.pending.Len() }

// SetTunnel tells that either direction ends on its own (CONNECT).
func (st *Stream) SetTunnel() { st.tunnel = true }

// Expect holds the bytes that follow to a Content-Length; -1 for none. It answers an error when none follow.
func (st *Stream) Expect(n int64) *hpack.Error {
	if st.length = n; n > 0 && st.remoteEnded {
		return errLength
	}
	return nil
}

var errLength = &hpack.Error{Detail: detailLength}

func (st *Stream) begin(id uint32, send, recv int32) {
	trailers := st.trailers
	*st = Stream{Owner: st.Owner, trailers: trailers, id: id, sendWindow: send, recvWindow: recv, length: -1, open: true}
}

// table finds streams by number: a hash with chains through the streams, which allocates only when it grows.
type table struct {
	buckets []*Stream // a power of two
	first   *Stream
	count   int
}

func (t *table) bucket(id uint32) **Stream {
	return &t.buckets[id>>1&uint32(len(t.buckets)-1)]
}

func (t *table) find(id uint32) *Stream {
	if len(t.buckets) == 0 {
		return nil
	}
	for st := *t.bucket(id); st != nil; st = st.chain {
		if st.id == id {
			return st
		}
	}
	return nil
}

func (t *table) insert(st *Stream) {
	if t.count >= len(t.buckets) {
		t.buckets = make([]*Stream, max(8, 2*len(t.buckets)))
		for other := t.first; other != nil; other = other.next {
			b := t.bucket(other.id)
			other.chain, *b = *b, other
		}
	}
	b := t.bucket(st.id)
	st.chain, *b = *b, st
	st.next, st.prev = t.first, nil
	if t.first != nil {
		t.first.prev = st
	}
	t.first = st
	t.count++
}

func (t *table) remove(st *Stream) {
	for at := t.bucket(st.id); ; at = &(*at).chain {
		if *at == st {
			*at = st.chain
			break
		}
	}
	if st.prev != nil {
		st.prev.next = st.next
	} else {
		t.first = st.next
	}
	if st.next != nil {
		st.next.prev = st.prev
	}
	st.next, st.prev, st.chain = nil, nil, nil
	t.count--
}

// recent remembers which streams we have reset: their frames may still be on the way, and are no fault (RFC 9113 5.1).
type recent struct {
	ids    [32]uint32
	oldest uint32 // the greatest number that was forgotten
	at     int
}

func (r *recent) add(id uint32) {
	r.oldest = max(r.oldest, r.ids[r.at])
	r.ids[r.at] = id
	r.at = (r.at + 1) % len(r.ids)
}

// has is generous to what was forgotten.
func (r *recent) has(id uint32) bool {
	if id <= r.oldest {
		return true
	}
	for _, known := range r.ids {
		if known == id {
			return true
		}
	}
	return false
}
