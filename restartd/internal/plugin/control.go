package plugin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// The handshake. The cookie keeps people from starting a plugin by hand; it is no secret.
const (
	cookieKey   = "RETINUE_PLUGIN"
	cookieValue = "filter"
	maxMessage  = 1 << 20 // of control
)

// major is a version of filter that both sides speak: what the handshake's version says.
type major uint32

// majors are those that this restartd speaks, the newest first. What a process chose of them holds for its generation: the ledger keeps it for the next
// restartd, and the table tells proxyd.
type majors []major

func spoken() majors { return majors{1} }

// String is the list as go-plugin offers it to a plugin, which takes the newest that it has too.
func (m majors) String() string { return m.join(",") }

func (m majors) join(sep string) string {
	texts := make([]string, len(m))
	for i, v := range m {
		texts[i] = strconv.Itoa(int(v))
	}
	return strings.Join(texts, sep)
}

// choose tells whether the version of a handshake line is spoken.
func (m majors) choose(version string) (major, error) {
	for _, v := range m {
		if version == strconv.Itoa(int(v)) {
			return v, nil
		}
	}
	return 0, fmt.Errorf("it speaks version %s of the filter protocol, this restartd %s: install a plugin built for it", version, m.join(" and "))
}

// controller is the control service of one plugin process. Close lets the process go, which it notices.
type controller interface {
	Hello(context.Context, *filterv1.HelloRequest) (*filterv1.HelloReply, error)
	Configure(context.Context, *filterv1.ConfigureRequest) (*filterv1.ConfigureReply, error)
	Drain(context.Context, *filterv1.DrainRequest) (*filterv1.DrainReply, error)
	Retire(context.Context, *filterv1.RetireRequest) (*filterv1.RetireReply, error)
	Metrics(context.Context, *filterv1.MetricsRequest) (*filterv1.MetricsReply, error)
	Close()
}

// contact opens the control service of a process that listens at address.
func contact(ctx context.Context, h *handshake, pid int, gone <-chan struct{}) (controller, error) {
	if _, err := spoken().choose(strconv.Itoa(int(h.major))); err != nil {
		return nil, err // adopted from a newer restartd
	}
	switch h.kind {
	case "grpc":
		return attachGoPlugin(h, pid, gone)
	case "frames":
		return dialFrames(ctx, h)
	}
	return nil, fmt.Errorf("it speaks %q; \"grpc\" and \"frames\" are understood", h.kind)
}

// goPlugin is a go-plugin that was reattached to.
type goPlugin struct {
	filterv1.PluginClient
	protocol goplugin.ClientProtocol
}

// versioned are the clients of each major.
func versioned() map[major]goplugin.PluginSet {
	return map[major]goplugin.PluginSet{1: {"filter": clientPlugin{}}}
}

func attachGoPlugin(h *handshake, pid int, gone <-chan struct{}) (controller, error) {
	c := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{ProtocolVersion: uint(h.major), MagicCookieKey: cookieKey, MagicCookieValue: cookieValue},
		Plugins:          versioned()[h.major],
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           hclog.NewNullLogger(),
		SyncStdout:       io.Discard, SyncStderr: io.Discard,
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithIdleTimeout(0), // the connection is what holds the process
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		},
		Reattach: &goplugin.ReattachConfig{
			Protocol: goplugin.ProtocolGRPC, ProtocolVersion: int(h.major), Pid: pid,
			Addr:         &net.UnixAddr{Net: "unix", Name: h.address},
			ReattachFunc: func() (runner.AttachedRunner, error) { return attached{pid, gone}, nil },
		},
	})
	p, err := c.Client()
	if err != nil {
		return nil, err
	}
	raw, err := p.Dispense("filter")
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	return &goPlugin{raw.(filterv1.PluginClient), p}, nil
}

// Hello implements controller.
func (g *goPlugin) Hello(ctx context.Context, r *filterv1.HelloRequest) (*filterv1.HelloReply, error) {
	return g.PluginClient.Hello(ctx, r, grpc.WaitForReady(true))
}

// Configure implements controller.
func (g *goPlugin) Configure(ctx context.Context, r *filterv1.ConfigureRequest) (*filterv1.ConfigureReply, error) {
	return g.PluginClient.Configure(ctx, r)
}

// Drain implements controller.
func (g *goPlugin) Drain(ctx context.Context, r *filterv1.DrainRequest) (*filterv1.DrainReply, error) {
	return g.PluginClient.Drain(ctx, r)
}

// Retire implements controller.
func (g *goPlugin) Retire(ctx context.Context, r *filterv1.RetireRequest) (*filterv1.RetireReply, error) {
	return g.PluginClient.Retire(ctx, r)
}

// Metrics implements controller.
func (g *goPlugin) Metrics(ctx context.Context, r *filterv1.MetricsRequest) (*filterv1.MetricsReply, error) {
	return g.PluginClient.Metrics(ctx, r)
}

// Close implements controller. go-plugin's own Close asks the server to shut down.
func (g *goPlugin) Close() { _ = g.protocol.Close() }

// attached is what go-plugin knows of the process: that it is somebody else's to kill.
type attached struct {
	pid  int
	gone <-chan struct{}
}

func (a attached) Wait(ctx context.Context) error {
	select {
	case <-a.gone:
	case <-ctx.Done():
	}
	return nil
}

func (attached) Kill(context.Context) error { return nil }
func (a attached) ID() string               { return strconv.Itoa(a.pid) }

func (attached) PluginToHost(network, address string) (string, string, error) {
	return network, address, nil
}

func (attached) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// clientPlugin makes the client of filter/v1 over go-plugin's connection.
type clientPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
}

// GRPCServer implements goplugin.GRPCPlugin; the server is the plugin.
func (clientPlugin) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this is the host")
}

// GRPCClient implements goplugin.GRPCPlugin.
func (clientPlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return filterv1.NewPluginClient(c), nil
}

// frames is the control service in frames, one call at a time.
type frames struct {
	mu   sync.Mutex
	conn net.Conn
	last uint64
}

func dialFrames(ctx context.Context, h *handshake) (controller, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", h.address)
	if err != nil {
		return nil, err
	}
	f := &frames{conn: c}
	opening := &filterv1.Opening{Protocol: uint32(h.major), Control: true, MaxFrameBytes: maxMessage}
	if err := f.send(&filterv1.ToPlugin{Message: &filterv1.ToPlugin_Opening{Opening: opening}}); err != nil {
		c.Close()
		return nil, err
	}
	return f, nil
}

func (f *frames) send(m *filterv1.ToPlugin) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = f.conn.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func (f *frames) receive() (*filterv1.FromPlugin, error) {
	var head [4]byte
	if _, err := io.ReadFull(f.conn, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxMessage {
		return nil, fmt.Errorf("it sent a frame of %d bytes; at most %d are taken", n, maxMessage)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(f.conn, body); err != nil {
		return nil, err
	}
	var m filterv1.FromPlugin
	return &m, proto.Unmarshal(body, &m)
}

func (f *frames) call(ctx context.Context, r *filterv1.ControlRequest) (*filterv1.ControlReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(5 * time.Second)
	}
	if err := f.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	f.last++
	r.Id = f.last
	if err := f.send(&filterv1.ToPlugin{Message: &filterv1.ToPlugin_Control{Control: r}}); err != nil {
		return nil, err
	}
	for {
		m, err := f.receive()
		if err != nil {
			return nil, err
		}
		reply := m.GetControl()
		switch {
		case m.GetOpening() != nil: // its greeting
		case reply.GetId() != r.GetId():
			if reply.GetId() > r.GetId() || reply == nil {
				return nil, errors.New("it answered what it was not asked")
			}
		case reply.GetError() != "":
			return nil, errors.New(reply.GetError())
		default:
			return reply, nil
		}
	}
}

// Hello implements controller.
func (f *frames) Hello(ctx context.Context, r *filterv1.HelloRequest) (*filterv1.HelloReply, error) {
	reply, err := f.call(ctx, &filterv1.ControlRequest{Call: &filterv1.ControlRequest_Hello{Hello: r}})
	return reply.GetHello(), err
}

// Configure implements controller.
func (f *frames) Configure(ctx context.Context, r *filterv1.ConfigureRequest) (*filterv1.ConfigureReply, error) {
	reply, err := f.call(ctx, &filterv1.ControlRequest{Call: &filterv1.ControlRequest_Configure{Configure: r}})
	return reply.GetConfigure(), err
}

// Drain implements controller.
func (f *frames) Drain(ctx context.Context, r *filterv1.DrainRequest) (*filterv1.DrainReply, error) {
	reply, err := f.call(ctx, &filterv1.ControlRequest{Call: &filterv1.ControlRequest_Drain{Drain: r}})
	return reply.GetDrain(), err
}

// Retire implements controller.
func (f *frames) Retire(ctx context.Context, r *filterv1.RetireRequest) (*filterv1.RetireReply, error) {
	reply, err := f.call(ctx, &filterv1.ControlRequest{Call: &filterv1.ControlRequest_Retire{Retire: r}})
	return reply.GetRetire(), err
}

// Metrics implements controller.
func (f *frames) Metrics(ctx context.Context, r *filterv1.MetricsRequest) (*filterv1.MetricsReply, error) {
	reply, err := f.call(ctx, &filterv1.ControlRequest{Call: &filterv1.ControlRequest_Metrics{Metrics: r}})
	return reply.GetMetrics(), err
}

// Close implements controller.
func (f *frames) Close() { _ = f.conn.Close() }
