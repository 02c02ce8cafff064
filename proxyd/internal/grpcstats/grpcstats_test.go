package grpcstats

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
)

// book resolves methods when the test lets it.
type book struct {
	let   chan struct{}
	mu    sync.Mutex
	cells map[string]*counters.GRPC
}

func (b *book) declare(service, name string) []*counters.GRPC {
	key := service + "/" + name
	<-b.let
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cells[key] == nil {
		b.cells[key] = new(counters.GRPC)
	}
	return []*counters.GRPC{b.cells[key]}
}

func TestMethodsAreFoundInTraffic(t *testing.T) {
	w, err := worker.New(0, simulated.New())
	if err != nil {
		t.Fatal(err)
	}
	b := &book{let: make(chan struct{}), cells: map[string]*counters.GRPC{}}
	l := New(1, b.declare)
	s := &stream.Stream{Worker: w}
	call := func(path, contentType, status string) {
		s.Request.Reset()
		s.Request.SetPath([]byte(path))
		s.Request.SetString(header.ContentType, "", contentType)
		s.Response = &header.Response{}
		s.ResponseTrailers = &header.Block{}
		if status != "" {
			s.ResponseTrailers.AddString(header.GrpcStatus, "", status)
		}
		l.Log(s)
	}
	call("/a.B/C?x", "application/grpc", "0")
	call("/a.B/C", "application/grpc+proto", "5")
	call("/a.B/C", "text/plain", "0")
	b.let <- struct{}{}
	for end := time.Now().Add(10 * time.Second); l.tables[0].find([]byte("/a.B/C")).cells == &l.tables[0].find([]byte("/a.B/C")).early; w.Turn(0) {
		if time.Now().After(end) {
			t.Fatal("the cells never came")
		}
	}
	call("/a.B/C", "application/grpc", "0")
	call("/a.B/C", "application/grpc", "")
	if got := b.cells["a.B/C"]; got[0] != 2 || got[5] != 1 || got[counters.GRPCNone] != 1 {
		t.Errorf("counted %v", got)
	}
	if n := testing.AllocsPerRun(100, func() { l.Log(s) }); n != 0 {
		t.Errorf("%v allocations a request of a known method", n)
	}
	for path, status := range map[string]string{"/a.B/Nowhere": "12", "/a": "0", "/a.B/": "0", "//C": "0", "/a/b/c": "0", "/a.B/%7e": "0"} {
		call(path, "application/grpc", status)
	}
	if got := l.tables[0].other.cells; got[0] != 5 || got[12] != 1 {
		t.Errorf("other counted %v", got)
	}
	for i := range Most + 10 {
		call(fmt.Sprintf("/s/M%d", i), "application/grpc", "0")
	}
	if got := l.tables[0].other.cells[0]; l.tables[0].count != Most || got != 5+11 {
		t.Errorf("%d methods are known, %d requests of others", l.tables[0].count, got)
	}
	close(b.let)
}
