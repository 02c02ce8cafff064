// Package spans takes recorded spans from proxyd's generations and exports them: statsd's part of tracing.
//
// Peers connect to a socket of whole messages (stats/v1 Spans). What they bring is encoded as a collector wants it; here it gets
// its resource and goes to the outbox. Without a collector, or with one that is away, spans are dropped and counted, and no
// peer waits.
package spans

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/buildinfo"
	configv1 "retinue.dev/services/api/config/v1"
	statsv1 "retinue.dev/services/api/stats/v1"

	"retinue.dev/statsd/internal/otlp"
)

// signal is the kind of request that carries spans.
var signal = otlp.Signal{
	What: "spans", Method: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
	Rejected: func(reply []byte) int64 {
		var r collectorpb.ExportTraceServiceResponse
		if proto.Unmarshal(reply, &r) != nil {
			return 0
		}
		return r.GetPartialSuccess().GetRejectedSpans()
	},
}

// Exporter sends spans to the collector that the configuration names. Its life: New; Set whenever the configuration changes;
// Close. Take may be called from any goroutine.
type Exporter struct {
	log    *slog.Logger
	counts otlp.Counts

	received atomic.Uint64 // spans
	unwanted atomic.Uint64 // spans that came without a collector, or were malformed

	mu     sync.Mutex
	config *configv1.Tracing
	outbox *otlp.Outbox // nil: nobody wants spans
	frame  frame
}

// frame is what stands around spans in a request.
type frame struct{ resource, scope []byte }

// New makes an exporter without a collector.
func New(log *slog.Logger) *Exporter { return &Exporter{log: log} }

// Set makes the object's collector the one that gets spans; nil for none. What is queued for another one is sent if that takes it at
// once.
func (e *Exporter) Set(config *configv1.Tracing) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if proto.Equal(config, e.config) && (config == nil) == (e.config == nil) {
		return
	}
	if old := e.outbox; old != nil {
		go old.Close(nil)
	}
	e.config, e.outbox = config, nil
	if config == nil {
		return
	}
	to := otlp.Collector{
		Endpoint: config.GetEndpoint(), Headers: config.GetHeaders(), Timeout: time.Duration(config.GetTimeoutMs()) * time.Millisecond, QueueBytes: int(config.GetQueueBytes()),
	}
	var err error
	if e.frame, err = newFrame(config); err == nil {
		e.outbox, err = otlp.New(to, signal, &e.counts, e.log)
	}
	if err != nil {
		e.outbox = nil
		e.log.Error("spans are not exported", "error", err)
	}
}

// Close ends the export; what is queued is sent if the collector takes it at once.
func (e *Exporter) Close() {
	e.mu.Lock()
	outbox := e.outbox
	e.outbox, e.config = nil, nil
	e.mu.Unlock()
	if outbox != nil {
		outbox.Close(nil)
	}
}

// Take queues the spans of a message. An error says that it is malformed.
func (e *Exporter) Take(m *statsv1.Spans) error {
	if err := check(m); err != nil {
		e.unwanted.Add(uint64(m.GetCount()))
		return err
	}
	e.received.Add(uint64(m.GetCount()))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.outbox == nil {
		e.unwanted.Add(uint64(m.GetCount()))
		return nil
	}
	return e.outbox.Offer(e.frame.request(m.GetSpans()))
}

// check tells whether the bytes are so many elements of ScopeSpans.spans. What is in them is proxyd's word.
func check(m *statsv1.Spans) error {
	n := uint32(0)
	for rest := m.GetSpans(); len(rest) > 0; n++ {
		number, kind, size := protowire.ConsumeTag(rest)
		if size < 0 || number != 2 || kind != protowire.BytesType {
			return errors.New("spans that are no list of spans")
		}
		_, length := protowire.ConsumeBytes(rest[size:])
		if length < 0 {
			return errors.New("a span that is cut off")
		}
		rest = rest[size+length:]
	}
	if n != m.GetCount() {
		return errors.New("another number of spans than was announced")
	}
	return nil
}

func newFrame(config *configv1.Tracing) (f frame, err error) {
	service := config.GetServiceName()
	if service == "" {
		service = "retinue"
	}
	if f.resource, err = proto.Marshal(&tracepb.ResourceSpans{Resource: otlp.Resource(service, config.GetAttributes())}); err != nil {
		return f, err
	}
	f.scope, err = proto.Marshal(&tracepb.ScopeSpans{Scope: &commonpb.InstrumentationScope{Name: "retinue.dev/proxyd", Version: buildinfo.Version}})
	return f, err
}

// request is an ExportTraceServiceRequest: fields of a message may be written one after the other.
func (f *frame) request(spans []byte) []byte {
	scoped := len(f.scope) + len(spans)
	whole := len(f.resource) + protowire.SizeTag(2) + protowire.SizeBytes(scoped)
	b := make([]byte, 0, whole+protowire.SizeTag(1)+protowire.SizeVarint(uint64(whole)))
	b = protowire.AppendTag(b, 1, protowire.BytesType) // resource_spans
	b = protowire.AppendVarint(b, uint64(whole))
	b = append(b, f.resource...)
	b = protowire.AppendTag(b, 2, protowire.BytesType) // scope_spans
	b = protowire.AppendVarint(b, uint64(scoped))
	b = append(b, f.scope...)
	return append(b, spans...)
}

// Usage is how the export goes.
type Usage struct {
	Endpoint           string // "" for none
	Received, Unwanted uint64 // spans
	Sent, Failed       uint64 // requests
	Dropped            uint64 // requests
	Queued             int64  // bytes
}

// Usage tells of it.
func (e *Exporter) Usage() Usage {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Usage{
		Endpoint: e.config.GetEndpoint(), Received: e.received.Load(), Unwanted: e.unwanted.Load(),
		Sent: e.counts.Sent.Load(), Failed: e.counts.Failed.Load(), Dropped: e.counts.Dropped.Load(), Queued: e.counts.Queued.Load(),
	}
}
