package spool

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/worker"
)

var small = Sizes{Chunk: 80, HandOver: 40, Interval: int64(time.Hour)}

func newSpool(t *testing.T, n int, sizes Sizes) (*Spool, []*worker.Worker) {
	t.Helper()
	var workers []*worker.Worker
	for id := range n {
		p, err := epoll.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Destroy)
		w, err := worker.New(id, p)
		if err != nil {
			t.Fatal(err)
		}
		workers = append(workers, w)
	}
	s, err := New("test", workers, sizes)
	if err != nil {
		t.Fatal(err)
	}
	return s, workers
}

// put writes a record of 8 bytes; false where there is no room.
func put(e *End, n uint64) bool {
	c := e.Room(8)
	if c == nil {
		return false
	}
	c.Bytes = binary.NativeEndian.AppendUint64(c.Bytes, n)
	e.Wrote(1)
	return true
}

// taker is a flusher that keeps what it is given.
type taker struct{ records [2][]uint64 }

func (k *taker) take(worker int, c *Chunk) {
	if len(c.Bytes) != 8*c.Records {
		panic("a chunk tells another number of records")
	}
	for b := c.Bytes; len(b) > 0; b = b[8:] {
		k.records[worker] = append(k.records[worker], binary.NativeEndian.Uint64(b))
	}
}

func (k *taker) all(worker int, c *Chunk) bool {
	k.take(worker, c)
	return true
}

// TestBehind: while the flusher is behind a worker fills the chunk that it has, and then there is no room; nothing that had room is lost.
func TestBehind(t *testing.T) {
	s, _ := newSpool(t, 1, small)
	e := s.End(0)
	var k taker
	if s.Drain(k.take); e.Waiting() != 0 {
		t.Error("bytes wait before the first record")
	}
	n := uint64(0)
	for put(e, n) {
		n++
	}
	if n != 15 { // 5 that were handed over, and 10 that fill the other chunk
		t.Errorf("%d records had room", n)
	}
	s.Drain(k.take)
	for range 2 { // the full one goes, and the other is empty
		if !put(e, n) {
			t.Error("no room after the flusher has been there")
		}
		n++
	}
	s.Drain(k.take)
	s.Rest(k.all)
	for i, got := range k.records[0] {
		if got != uint64(i) {
			t.Fatalf("record %d is %d", i, got)
		}
	}
	if len(k.records[0]) != int(n) {
		t.Errorf("%d records of %d", len(k.records[0]), n)
	}
}

// TestInterval: a record does not wait for others.
func TestInterval(t *testing.T) {
	s, workers := newSpool(t, 1, Sizes{Chunk: 80, HandOver: 40, Interval: int64(10 * time.Millisecond)})
	put(s.End(0), 7)
	var k taker
	for end := time.Now().Add(20 * time.Second); len(k.records[0]) == 0; s.Drain(k.take) {
		if workers[0].Turn(int64(time.Millisecond)); time.Now().After(end) {
			t.Fatal("a record waits for ever")
		}
	}
	if err := s.Wait(); err != nil { // the bell has rung
		t.Error(err)
	}
}

// TestAllocatesNothing holds a record that fits.
func TestAllocatesNothing(t *testing.T) {
	s, _ := newSpool(t, 1, small)
	e := s.End(0)
	put(e, 0)
	n := testing.AllocsPerRun(100, func() {
		put(e, 1)
		s.Drain(func(int, *Chunk) {})
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestConcurrent: records come once and in order while workers and flusher run beside each other.
func TestConcurrent(t *testing.T) {
	const records = 20_000
	s, _ := newSpool(t, 2, small)
	var k taker
	var written [2]uint64
	var workers, flusher sync.WaitGroup
	flusher.Go(func() {
		for {
			ended := s.Ended()
			if s.Drain(k.take); ended {
				s.Rest(k.all)
				return
			}
			if err := s.Wait(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for id := range 2 {
		workers.Go(func() {
			for range records {
				if put(s.End(id), written[id]) {
					written[id]++
				}
			}
		})
	}
	workers.Wait()
	s.Finish()
	flusher.Wait()
	for id, got := range k.records {
		if uint64(len(got)) != written[id] || written[id] < 15 {
			t.Errorf("worker %d wrote %d records, %d came", id, written[id], len(got))
		}
		for i, n := range got {
			if n != uint64(i) {
				t.Fatalf("worker %d: record %d is %d", id, i, n)
			}
		}
	}
}
