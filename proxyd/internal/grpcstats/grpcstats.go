// Package grpcstats counts gRPC requests by method and by status.
//
// Methods are found in traffic, so a worker cannot have resolved them when the snapshot was built: it counts a new method in memory
// of its own, has a goroutine declare the series meanwhile, and moves what it has counted to the cells when those come by its
// mailbox. Nothing waits and nothing is lost. What comes from outside is bounded: at most Most methods of a listener have series
// of their own, and a method that the upstream says it does not have gets none; the rest counts as method "other".
package grpcstats

import (
	"bytes"
	"strconv"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
)

// Most is how many methods a listener has series of.
const Most = 500

// Declare resolves the series of a method, for every worker. It may take its time.
type Declare func(service, method string) []*counters.GRPC

// Log is the counting of one listener: stream.AccessLog. Every worker has its own table in it.
type Log struct {
	declare Declare
	tables  []table
}

// table finds methods by path: open addressing, never more than half full.
type table struct {
	slots [2 * Most]*method
	count int
	other *method  // nil until it counts something
	_     [64]byte // another worker's table is another cache line's
}

type method struct {
	path  string
	cells *counters.GRPC
	early counters.GRPC // until there are cells
}

// New makes it for so many workers.
func New(workers int, declare Declare) *Log {
	return &Log{declare: declare, tables: make([]table, workers)}
}

const unimplemented = 12

// Log implements stream.AccessLog.
func (l *Log) Log(s *stream.Stream) {
	if !s.GRPC() {
		return
	}
	status := status(s)
	t := &l.tables[s.Worker.ID]
	m := t.find(s.Request.PathOnly())
	if m == nil {
		m = l.unknown(t, s, status)
	}
	m.cells[status]++
}

// unknown makes the entry of a method that is worth one.
func (l *Log) unknown(t *table, s *stream.Stream, status int) *method {
	if status != unimplemented && !s.Replied() && t.count < Most {
		if service, name, ok := split(s.Request.PathOnly()); ok {
			m := l.begin(s, string(service), string(name))
			t.insert(m)
			return m
		}
	}
	if t.other == nil {
		t.other = l.begin(s, "other", "other")
	}
	return t.other
}

// begin makes a method's entry. This is the one place that allocates, once a method and worker.
func (l *Log) begin(s *stream.Stream, service, name string) *method {
	m := &method{path: "/" + service + "/" + name}
	m.cells = &m.early
	w := s.Worker
	go func() {
		cells := l.declare(service, name)
		w.Post(func() {
			m.cells = cells[w.ID]
			for i, n := range m.early {
				m.cells[i] += n
			}
		})
	}()
	return m
}

// status is the request's grpc-status as a cell: that of the trailers, or of a head that is all there is.
func status(s *stream.Stream) int {
	var value []byte
	if s.ResponseTrailers != nil {
		value = s.ResponseTrailers.Get(header.GrpcStatus)
	}
	if value == nil && s.Response != nil {
		value = s.Response.Get(header.GrpcStatus)
	}
	if len(value) == 0 || len(value) > 2 {
		return counters.GRPCNone
	}
	n, err := strconv.Atoi(string(value))
	if err != nil || n < 0 || n >= counters.GRPCNone {
		return counters.GRPCNone
	}
	return n
}

// split cuts "/package.Service/Method"; false for what is not one, or could not be a label.
func split(path []byte) (service, name []byte, ok bool) {
	if len(path) < 4 || len(path) > 200 || path[0] != '/' {
		return nil, nil, false
	}
	at := bytes.IndexByte(path[1:], '/') + 1
	if at < 2 || at == len(path)-1 {
		return nil, nil, false
	}
	service, name = path[1:at], path[at+1:]
	for _, part := range [2][]byte{service, name} {
		for _, c := range part {
			if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && c != '.' && c != '_' {
				return nil, nil, false
			}
		}
	}
	return service, name, true
}

func slot[T string | []byte](path T) uint32 {
	h := uint32(2166136261)
	for i := range len(path) {
		h = (h ^ uint32(path[i])) * 16777619
	}
	return h % (2 * Most)
}

func (t *table) find(path []byte) *method {
	for i := slot(path); ; i = (i + 1) % (2 * Most) {
		m := t.slots[i]
		if m == nil || m.path == string(path) {
			return m
		}
	}
}

func (t *table) insert(m *method) {
	i := slot(m.path)
	for t.slots[i] != nil {
		i = (i + 1) % (2 * Most)
	}
	t.slots[i] = m
	t.count++
}
