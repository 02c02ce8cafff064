package plugin

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// TestMain makes the test's own binary a plugin when restartd's handshake cookie says so.
func TestMain(m *testing.M) {
	if os.Getenv(cookieKey) == cookieValue {
		fakePlugin()
		return
	}
	os.Exit(m.Run())
}

// fakeConfig is what the fake takes.
type fakeConfig struct {
	Mode string `json:"mode"` // "" "crash" (once it is configured) "refuse" "child" (it has one)
}

// fakePlugin speaks control in frames. It notes the data connections that are open.
func fakePlugin() {
	if list := os.Getenv("FAKE_MAJORS"); list != "" {
		versionedPlugin(list)
		return
	}
	l, err := net.Listen("unix", "fake.sock")
	if err != nil {
		panic(err)
	}
	if mode := os.Getenv("FAKE_HANDSHAKE"); mode != "" {
		fmt.Println(mode)
	} else {
		fmt.Println("some words before it\n1|1|unix|fake.sock|frames")
	}
	signal.Ignore(syscall.SIGPIPE)
	var data atomic.Int32
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go fakeServe(c, &data)
	}
}

func fakeServe(c net.Conn, data *atomic.Int32) {
	f := frames{conn: c}
	for {
		var head [4]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		body := make([]byte, binary.LittleEndian.Uint32(head[:]))
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		var m filterv1.ToPlugin
		if err := proto.Unmarshal(body, &m); err != nil {
			return
		}
		if o := m.GetOpening(); o != nil && !o.GetControl() {
			data.Add(1)
			defer data.Add(-1)
		}
		r := m.GetControl()
		if r == nil {
			continue
		}
		reply := &filterv1.ControlReply{Id: r.GetId()}
		switch call := r.GetCall().(type) {
		case *filterv1.ControlRequest_Hello:
			reply.Reply = &filterv1.ControlReply_Hello{Hello: &filterv1.HelloReply{
				Name: "fake", Version: "1", Protocol: 1, DataAddress: "fake.sock",
				Schema: &filterv1.Schema{Fields: []*filterv1.Field{{Name: "mode", Type: filterv1.Type_TYPE_STRING}}},
			}}
		case *filterv1.ControlRequest_Configure:
			var config fakeConfig
			_ = json.Unmarshal(call.Configure.GetConfigJson(), &config)
			done := &filterv1.ConfigureReply{Subscription: &filterv1.Subscription{Phases: []filterv1.Phase{filterv1.Phase_PHASE_REQUEST_HEADERS}}}
			switch config.Mode {
			case "refuse":
				done = &filterv1.ConfigureReply{Problems: []*filterv1.Problem{{Field: "mode", Message: "not that one"}}}
			case "crash":
				defer os.Exit(3)
			case "child":
				child := exec.Command("/bin/sleep", "1000")
				if err := child.Start(); err == nil {
					fmt.Println("child", child.Process.Pid)
				}
			}
			reply.Reply = &filterv1.ControlReply_Configure{Configure: done}
		case *filterv1.ControlRequest_Retire:
			fmt.Println("retired", call.Retire.GetConfigId())
			reply.Reply = &filterv1.ControlReply_Retire{Retire: &filterv1.RetireReply{}}
		case *filterv1.ControlRequest_Metrics:
			reply.Reply = &filterv1.ControlReply_Metrics{Metrics: &filterv1.MetricsReply{Metrics: []*filterv1.Metric{
				{Name: "calls", Value: 5}, {Name: "open", Value: 2, Gauge: true}, {Name: "Bad name", Value: 1},
			}}}
		case *filterv1.ControlRequest_Drain:
			reply.Reply = &filterv1.ControlReply_Drain{Drain: &filterv1.DrainReply{OpenConnections: uint32(data.Load())}}
		}
		b, err := proto.Marshal(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Control{Control: reply}})
		if err != nil {
			return
		}
		if _, err := f.conn.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
			return
		}
		if r.GetConfigure() != nil && string(r.GetConfigure().GetConfigJson()) == `{"mode":"crash"}` {
			return // the deferred exit
		}
	}
}
