package pluginsdk

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// The handshake of go-plugin, and what restartd puts into the environment.
const (
	CookieKey   = "RETINUE_PLUGIN"
	CookieValue = "filter"
	// orphanVariable is for how long, in milliseconds, a plugin lives that nobody holds.
	orphanVariable = "RETINUE_PLUGIN_ORPHAN_MS"
	orphanDefault  = 30 * time.Second
)

// dataSocket is the data socket's name in the working directory, which restartd makes for each generation.
const dataSocket = "data.sock"

// Serve makes the process a plugin. It is the last call of main and does not return. It sets GOMAXPROCS to what it was and one more for each worker that
// is connected: those wait for the next call without giving their processor up.
func Serve[C any](p Plugin[C]) {
	if err := serve(p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve[C any](p Plugin[C]) error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	e, err := newEngine(p)
	if err != nil {
		return err
	}
	if os.Getenv(CookieKey) != CookieValue {
		return fmt.Errorf("%s %s is a plugin of Retinue: it is named in a configuration, plugin \"NAME\" { command = … }, and started by restartd", p.Name, p.Version)
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	_ = os.Remove(dataSocket)
	l, err := net.Listen("unix", dataSocket) // relative: short whatever the directory
	if err != nil {
		return err
	}
	if err := os.Chmod(dataSocket, 0o660); err != nil {
		return err
	}
	e.hello.DataAddress = filepath.Join(dir, dataSocket)
	failed := make(chan error, 1)
	go func() { failed <- e.accept(l) }()

	// go-plugin replaces os.Stdout and os.Stderr by pipes that only a host reads, and our host does not: whoever wrote to them would
	// block when it is away. They are put back as soon as somebody has connected, who has read the handshake line then: standard
	// output is for that line alone, what comes later goes where standard error goes.
	out, errs := os.Stdout, os.Stderr
	h := newHolder(orphanTime(), func() {
		os.Stdout, os.Stderr = out, errs
		_ = syscall.Dup3(int(errs.Fd()), int(out.Fd()), 0)
	})
	go goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  Handshake(),
		VersionedPlugins: map[int]goplugin.PluginSet{1: {"filter": &grpcPlugin{server: &controlServer{e: e}}}},
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: errs}),
		GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(o, grpc.StatsHandler(h), grpc.MaxRecvMsgSize(maxFrame))...)
		},
	})
	select {
	case err := <-failed:
		return err
	case <-h.orphaned:
		slog.Warn("nobody has held the control connection: the process ends", "after", orphanTime())
		return nil
	}
}

func orphanTime() time.Duration {
	if ms, err := strconv.Atoi(os.Getenv(orphanVariable)); err == nil && ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return orphanDefault
}

// Handshake is what both sides of go-plugin must agree on.
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}

// grpcPlugin is the go-plugin named "filter".
type grpcPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	server *controlServer
}

// GRPCServer implements goplugin.GRPCPlugin.
func (p *grpcPlugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	filterv1.RegisterPluginServer(s, p.server)
	return nil
}

// GRPCClient implements goplugin.GRPCPlugin.
func (p *grpcPlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return filterv1.NewPluginClient(c), nil
}

// holder notices when no control connection is left for too long. It is the gRPC server's stats handler.
type holder struct {
	patience time.Duration
	ready    func()
	started  atomic.Bool
	count    atomic.Int32
	timer    *time.Timer
	orphaned chan struct{}
}

func newHolder(patience time.Duration, ready func()) *holder {
	h := &holder{patience: patience, ready: ready, orphaned: make(chan struct{})}
	h.timer = time.AfterFunc(patience, func() {
		if h.count.Load() == 0 {
			close(h.orphaned)
		}
	})
	return h
}

// HandleConn implements stats.Handler.
func (h *holder) HandleConn(_ context.Context, s stats.ConnStats) {
	switch s.(type) {
	case *stats.ConnBegin:
		if h.started.CompareAndSwap(false, true) {
			h.ready()
		}
		h.count.Add(1)
	case *stats.ConnEnd:
		if h.count.Add(-1) == 0 {
			h.timer.Reset(h.patience)
		}
	}
}

// TagConn implements stats.Handler.
func (*holder) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// TagRPC implements stats.Handler.
func (*holder) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (*holder) HandleRPC(context.Context, stats.RPCStats) {}

// controlServer answers filter/v1.
type controlServer struct {
	filterv1.UnimplementedPluginServer
	e *engine
}

// Hello implements filter/v1.
func (s *controlServer) Hello(_ context.Context, r *filterv1.HelloRequest) (*filterv1.HelloReply, error) {
	if r.GetProtocol() != 1 {
		return nil, fmt.Errorf("protocol %d is asked for; this plugin speaks 1", r.GetProtocol())
	}
	return s.e.hello, nil
}

// Configure implements filter/v1.
func (s *controlServer) Configure(_ context.Context, r *filterv1.ConfigureRequest) (*filterv1.ConfigureReply, error) {
	return s.e.setConfig(r), nil
}

// Retire implements filter/v1.
func (s *controlServer) Retire(_ context.Context, r *filterv1.RetireRequest) (*filterv1.RetireReply, error) {
	s.e.retire(r.GetConfigId())
	return &filterv1.RetireReply{}, nil
}

// Drain implements filter/v1.
func (s *controlServer) Drain(context.Context, *filterv1.DrainRequest) (*filterv1.DrainReply, error) {
	return &filterv1.DrainReply{OpenStreams: uint64(max(s.e.streams.Load(), 0)), OpenConnections: uint32(max(s.e.connections.Load(), 0))}, nil
}

// Metrics implements filter/v1.
func (s *controlServer) Metrics(context.Context, *filterv1.MetricsRequest) (*filterv1.MetricsReply, error) {
	r := &filterv1.MetricsReply{Metrics: []*filterv1.Metric{
		{Name: "open_streams", Value: float64(s.e.streams.Load()), Gauge: true},
		{Name: "open_connections", Value: float64(s.e.connections.Load()), Gauge: true},
	}}
	if s.e.metrics != nil {
		for _, m := range s.e.metrics() {
			r.Metrics = append(r.Metrics, &filterv1.Metric{Name: m.Name, Value: m.Value, Gauge: m.Gauge})
		}
	}
	return r, nil
}
