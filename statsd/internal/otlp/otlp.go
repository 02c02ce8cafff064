// Package otlp sends requests of OpenTelemetry's protocol to a collector, by HTTP or gRPC: what values and spans have in common.
//
// An Outbox queues requests, encoded and bounded in bytes, and sends them in turn in a goroutine of its own. A refusal that may
// pass is tried again with growing pauses; what is refused for good, or is pushed out of a full queue, is dropped and counted.
package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/buildinfo"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	firstPause  = time.Second
	longPause   = time.Minute
	maxResponse = 64 << 10
	lastSending = 2 * time.Second // when statsd ends
)

// Signal is a kind of request.
type Signal struct {
	What   string // for people: "values", "spans"
	Method string // of gRPC
	// Rejected reads how many things a reply says that the collector did not take.
	Rejected func(reply []byte) int64
}

// Collector is where requests go.
type Collector struct {
	Endpoint   string // "http(s)://HOST:PORT/path" or "grpc(s)://HOST:PORT"
	Headers    []*configv1.StatsLabel
	Timeout    time.Duration // of one request
	QueueBytes int
}

// Counts are what became of requests.
type Counts struct {
	Sent    atomic.Uint64 // accepted
	Failed  atomic.Uint64 // attempts that were not
	Dropped atomic.Uint64 // given up: refused for good, or pushed out of the queue
	Queued  atomic.Int64  // bytes that wait
}

// Outbox queues requests in turn and sends them in a goroutine of its own, one after the other. Its life: New; Offer from any
// goroutine; Close.
type Outbox struct {
	signal  Signal
	room    int
	export  exporter
	timeout time.Duration
	counts  *Counts
	log     *slog.Logger

	mu    sync.Mutex
	queue [][]byte
	bytes int
	fresh chan struct{} // something was queued

	stop context.CancelFunc
	done chan struct{}
	away bool // told; the sending goroutine's
}

// exporter is one way to a collector. pause above 0 says that the refusal may pass, and how long the collector asks to wait
// (a nanosecond: it does not say).
type exporter interface {
	pack(request []byte) ([]byte, error) // as it is queued
	send(ctx context.Context, packed []byte) (pause time.Duration, reply []byte, err error)
	close()
}

// New makes an outbox to a collector and starts it.
func New(to Collector, signal Signal, counts *Counts, log *slog.Logger) (*Outbox, error) {
	u, err := url.Parse(to.Endpoint)
	if err != nil {
		return nil, err
	}
	var export exporter
	if strings.HasPrefix(u.Scheme, "grpc") {
		export, err = newGRPC(u, signal.Method, to.Headers)
	} else {
		export = newHTTP(to.Endpoint, to.Headers)
	}
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	o := &Outbox{
		signal: signal, room: to.QueueBytes, export: export, counts: counts, log: log,
		timeout: max(to.Timeout, 100*time.Millisecond),
		fresh:   make(chan struct{}, 1), stop: stop, done: make(chan struct{}),
	}
	go o.run(ctx)
	return o, nil
}

// Offer queues a request. The oldest is dropped when there is no room: the newest says most.
func (o *Outbox) Offer(request []byte) error {
	packed, err := o.export.pack(request)
	if err == nil {
		o.enqueue(packed)
	}
	return err
}

func (o *Outbox) enqueue(packed []byte) {
	o.mu.Lock()
	o.queue = append(o.queue, packed)
	o.bytes += len(packed)
	for o.bytes > o.room && len(o.queue) > 1 {
		o.bytes -= len(o.queue[0])
		o.queue[0] = nil
		o.queue = o.queue[1:]
		o.counts.Dropped.Add(1)
	}
	o.counts.Queued.Store(int64(o.bytes))
	o.mu.Unlock()
	select {
	case o.fresh <- struct{}{}:
	default:
	}
}

func (o *Outbox) head() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		return nil
	}
	return o.queue[0]
}

// remove takes a request off the queue, unless it was pushed out meanwhile.
func (o *Outbox) remove(packed []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) > 0 && &o.queue[0][0] == &packed[0] {
		o.bytes -= len(packed)
		o.queue[0] = nil
		o.queue = o.queue[1:]
		o.counts.Queued.Store(int64(o.bytes))
	}
}

func (o *Outbox) run(ctx context.Context) {
	defer close(o.done)
	pause := firstPause
	for {
		packed := o.head()
		if packed == nil {
			select {
			case <-ctx.Done():
				return
			case <-o.fresh:
				continue
			}
		}
		wait := o.try(ctx, packed)
		if wait == 0 {
			pause = firstPause
			continue
		}
		if ctx.Err() != nil {
			return
		}
		// A pause that the collector did not name grows, and is not the same for all that were refused together.
		if wait < firstPause {
			wait = pause/2 + rand.N(pause/2)
			pause = min(2*pause, longPause)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(wait, 5*longPause)):
		}
	}
}

// try sends once. It returns 0 when the request is done with, one way or the other.
func (o *Outbox) try(ctx context.Context, packed []byte) (pause time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	pause, reply, err := o.export.send(ctx, packed)
	switch {
	case err == nil:
		o.remove(packed)
		o.counts.Sent.Add(1)
		if n := o.signal.Rejected(reply); n > 0 { // advice: a reply that cannot be read changes nothing
			o.log.Warn("the collector rejected some "+o.signal.What, o.signal.What, n)
		}
		if o.away {
			o.away = false
			o.log.Info("the collector takes " + o.signal.What + " again")
		}
		return 0
	case pause == 0:
		o.remove(packed)
		o.counts.Failed.Add(1)
		o.counts.Dropped.Add(1)
		if !o.away {
			o.log.Error("the collector refuses the "+o.signal.What+"; they are dropped", "error", err)
		}
		o.away = true
		return 0
	}
	o.counts.Failed.Add(1)
	if !o.away {
		o.away = true
		o.log.Warn("the collector cannot be reached or is busy; "+o.signal.What+" are queued and tried again", "error", err)
	}
	return pause
}

// Close ends the outbox. What is queued, and what last offers, is sent if the collector takes it at once; last may be nil, and is
// not called where the collector was away.
func (o *Outbox) Close(last func()) {
	o.stop()
	<-o.done
	if !o.away {
		if last != nil {
			last()
		}
		ctx, cancel := context.WithTimeout(context.Background(), lastSending)
		defer cancel()
		for packed := o.head(); packed != nil && ctx.Err() == nil && o.try(ctx, packed) == 0; packed = o.head() {
		}
	}
	o.export.close()
}

// overHTTP is OTLP/HTTP with protobuf and gzip.
type overHTTP struct {
	endpoint string
	headers  []*configv1.StatsLabel
	client   *http.Client
}

func newHTTP(endpoint string, headers []*configv1.StatsLabel) *overHTTP {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: 2 * time.Minute,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	return &overHTTP{endpoint: endpoint, headers: headers, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (h *overHTTP) pack(request []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(request); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

func (h *overHTTP) send(ctx context.Context, packed []byte) (time.Duration, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.endpoint, bytes.NewReader(packed))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("Content-Encoding", "gzip")
	r.Header.Set("User-Agent", "retinue-statsd/"+buildinfo.Version)
	for _, l := range h.headers {
		r.Header.Set(l.GetName(), l.GetValue())
	}
	response, err := h.client.Do(r)
	if err != nil {
		return 1, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponse))
	switch {
	case response.StatusCode/100 == 2:
		return 0, body, nil
	case response.StatusCode == 429, response.StatusCode == 502, response.StatusCode == 503, response.StatusCode == 504:
		pause := time.Duration(1)
		if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
			pause = time.Duration(min(seconds, 3600)) * time.Second
		}
		return pause, nil, fmt.Errorf("it answers %s", response.Status)
	}
	if err == nil && strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain") {
		return 0, nil, fmt.Errorf("it answers %s: %.200q", response.Status, body)
	}
	return 0, nil, fmt.Errorf("it answers %s", response.Status)
}

func (h *overHTTP) close() { h.client.CloseIdleConnections() }

// overGRPC is OTLP/gRPC. Its requests stay as they were encoded.
type overGRPC struct {
	conn     *grpc.ClientConn
	method   string
	metadata metadata.MD
}

func newGRPC(u *url.URL, method string, headers []*configv1.StatsLabel) (*overGRPC, error) {
	secure := insecure.NewCredentials()
	if u.Scheme == "grpcs" {
		secure = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	conn, err := grpc.NewClient("dns:///"+u.Host, grpc.WithTransportCredentials(secure), grpc.WithUserAgent("retinue-statsd/"+buildinfo.Version),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(encoded{}), grpc.MaxCallRecvMsgSize(maxResponse)))
	if err != nil {
		return nil, err
	}
	md := metadata.MD{}
	for _, l := range headers {
		md.Append(l.GetName(), l.GetValue())
	}
	return &overGRPC{conn, method, md}, nil
}

func (g *overGRPC) pack(request []byte) ([]byte, error) { return request, nil }

func (g *overGRPC) send(ctx context.Context, packed []byte) (time.Duration, []byte, error) {
	var reply []byte
	err := g.conn.Invoke(metadata.NewOutgoingContext(ctx, g.metadata), g.method, &packed, &reply)
	if err == nil {
		return 0, reply, nil
	}
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss, codes.ResourceExhausted:
		return 1, nil, err
	}
	return 0, nil, err
}

func (g *overGRPC) close() { g.conn.Close() }

// encoded passes messages that are encoded already.
type encoded struct{}

func (encoded) Name() string { return "proto" }

func (encoded) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, errors.New("not an encoded message")
	}
	return *b, nil
}

func (encoded) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return errors.New("not an encoded message")
	}
	*b = bytes.Clone(data)
	return nil
}
