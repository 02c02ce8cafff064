// Package plugintest runs a plugin's program as restartd and proxyd would, without either: Conformance holds it to the protocol, Replay
// gives it recorded streams and compares what it answers.
package plugintest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// Program is a plugin's executable and a configuration that it takes, one JSON object.
type Program struct {
	Path   string
	Config string
}

// Build builds the plugin of a directory, with the Go command.
func Build(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plugin")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", dir, err, out)
	}
	return path
}

// process is a running plugin.
type process struct {
	t       testing.TB
	dir     string
	cmd     *exec.Cmd
	done    chan struct{}
	control func(*filterv1.ControlRequest) (*filterv1.ControlReply, error)
	release func() // lets the control connection go
	hello   *filterv1.HelloReply
	sub     *filterv1.Subscription
}

// start runs the program up to its handshake and says hello.
func start(t testing.TB, p Program, orphan time.Duration) *process {
	t.Helper()
	dir, err := os.MkdirTemp("", "plugin") // t.TempDir's may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	path, err := filepath.Abs(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	s := &process{t: t, dir: dir, cmd: exec.Command(path), done: make(chan struct{})}
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, out, out
	s.cmd.Env = []string{
		"RETINUE_PLUGIN=filter", "RETINUE_PLUGIN_NAME=test", "RETINUE_PLUGIN_GENERATION=1", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR=.",
		"PATH=" + os.Getenv("PATH"), fmt.Sprintf("RETINUE_PLUGIN_ORPHAN_MS=%d", orphan.Milliseconds()),
	}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.done)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.done
		if t.Failed() {
			t.Logf("the plugin wrote:\n%s", s.output())
		}
		os.RemoveAll(dir)
	})
	address, kind := s.handshake()
	if kind == "frames" {
		s.controlFrames(address)
	} else {
		s.controlGRPC(address)
	}
	reply, err := s.control(&filterv1.ControlRequest{Call: &filterv1.ControlRequest_Hello{Hello: &filterv1.HelloRequest{Protocol: 1, Name: "test", Generation: 1}}})
	if err != nil {
		t.Fatalf("hello: %v", err)
	}
	s.hello = reply.GetHello()
	return s
}

func (s *process) output() []byte {
	b, _ := os.ReadFile(filepath.Join(s.dir, "output"))
	return b
}

func (s *process) handshake() (address, kind string) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for line := range bytes.Lines(s.output()) {
			f := strings.Split(strings.TrimSpace(string(line)), "|")
			if bytes.HasSuffix(line, []byte("\n")) && len(f) >= 5 && f[0] == "1" && f[1] == "1" && f[2] == "unix" {
				return s.absolute(f[3]), f[4]
			}
		}
		select {
		case <-s.done:
			s.t.Fatal("the program ended before its handshake")
		default:
		}
	}
	s.t.Fatal("there is no handshake line")
	return "", ""
}

func (s *process) absolute(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(s.dir, path)
}

func (s *process) controlGRPC(address string) {
	c, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	client := filterv1.NewPluginClient(c)
	s.release = func() { c.Close() }
	s.t.Cleanup(s.release)
	s.control = func(r *filterv1.ControlRequest) (*filterv1.ControlReply, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		reply := &filterv1.ControlReply{}
		var err error
		switch call := r.GetCall().(type) {
		case *filterv1.ControlRequest_Hello:
			var got *filterv1.HelloReply
			got, err = client.Hello(ctx, call.Hello, grpc.WaitForReady(true))
			reply.Reply = &filterv1.ControlReply_Hello{Hello: got}
		case *filterv1.ControlRequest_Configure:
			var got *filterv1.ConfigureReply
			got, err = client.Configure(ctx, call.Configure)
			reply.Reply = &filterv1.ControlReply_Configure{Configure: got}
		case *filterv1.ControlRequest_Drain:
			var got *filterv1.DrainReply
			got, err = client.Drain(ctx, call.Drain)
			reply.Reply = &filterv1.ControlReply_Drain{Drain: got}
		case *filterv1.ControlRequest_Retire:
			_, err = client.Retire(ctx, call.Retire)
		}
		return reply, err
	}
}

func (s *process) controlFrames(address string) {
	c := s.connect(address, true)
	s.release = func() { c.Close() }
	id := uint64(0)
	s.control = func(r *filterv1.ControlRequest) (*filterv1.ControlReply, error) {
		id++
		r.Id = id
		c.send(&filterv1.ToPlugin{Message: &filterv1.ToPlugin_Control{Control: r}})
		m, err := c.receive()
		if err != nil {
			return nil, err
		}
		reply := m.GetControl()
		if reply.GetId() != id {
			return nil, fmt.Errorf("request %d was answered by %v", id, m)
		}
		if reply.GetError() != "" {
			return nil, errors.New(reply.GetError())
		}
		return reply, nil
	}
}

// configure gives the configuration of an id.
func (s *process) configure(id uint32, config string) *filterv1.ConfigureReply {
	s.t.Helper()
	if config == "" {
		config = "{}"
	}
	reply, err := s.control(&filterv1.ControlRequest{Call: &filterv1.ControlRequest_Configure{Configure: &filterv1.ConfigureRequest{ConfigId: id, ConfigJson: []byte(config)}}})
	if err != nil {
		s.t.Fatalf("configure: %v", err)
	}
	return reply.GetConfigure()
}

// connection is a data connection, or a control connection in frames.
type connection struct {
	net.Conn
	t testing.TB
}

func (s *process) connect(address string, control bool) *connection {
	s.t.Helper()
	c, err := net.Dial("unix", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	k := &connection{c, s.t}
	k.send(&filterv1.ToPlugin{Message: &filterv1.ToPlugin_Opening{Opening: &filterv1.Opening{Protocol: 1, Control: control, Generation: 1, MaxFrameBytes: 1 << 20}}})
	m, err := k.receive()
	if err != nil || m.GetOpening().GetProtocol() != 1 {
		s.t.Fatalf("the opening was answered by %v, %v", m, err)
	}
	return k
}

func (s *process) data() *connection {
	s.t.Helper()
	return s.connect(s.absolute(s.hello.GetDataAddress()), false)
}

func appendFrame(b []byte, m *filterv1.ToPlugin) []byte {
	body, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(body))), body...)
}

func (c *connection) send(messages ...*filterv1.ToPlugin) {
	c.t.Helper()
	var b []byte
	for _, m := range messages {
		b = appendFrame(b, m)
	}
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *connection) receive() (*filterv1.FromPlugin, error) {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > 1<<20 {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c, body); err != nil {
		return nil, err
	}
	var m filterv1.FromPlugin
	return &m, proto.Unmarshal(body, &m)
}

func event(e *filterv1.Event) *filterv1.ToPlugin {
	return &filterv1.ToPlugin{Message: &filterv1.ToPlugin_Event{Event: e}}
}
