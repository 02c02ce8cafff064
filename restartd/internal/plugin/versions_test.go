package plugin

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	configv1 "retinue.dev/services/api/config/v1"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// versionedPlugin makes the process a real go-plugin that offers the given majors. Those above 1 are made up: they speak filter/v1 with another
// number.
func versionedPlugin(list string) {
	sets := map[int]goplugin.PluginSet{}
	for text := range strings.SplitSeq(list, ",") {
		v, err := strconv.Atoi(text)
		if err != nil {
			panic(err)
		}
		sets[v] = goplugin.PluginSet{"filter": versionedServer{major: uint32(v)}}
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: cookieKey, MagicCookieValue: cookieValue},
		VersionedPlugins: sets,
		Logger:           hclog.New(&hclog.LoggerOptions{Output: io.Discard}),
		GRPCServer:       goplugin.DefaultGRPCServer,
	})
}

type versionedServer struct {
	goplugin.NetRPCUnsupportedPlugin
	filterv1.UnimplementedPluginServer
	major uint32
}

func (s versionedServer) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	filterv1.RegisterPluginServer(g, s)
	return nil
}

func (versionedServer) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, io.EOF
}

func (s versionedServer) Hello(_ context.Context, r *filterv1.HelloRequest) (*filterv1.HelloReply, error) {
	if r.GetProtocol() != s.major {
		return nil, fmt.Errorf("protocol %d is asked for, %d was agreed upon", r.GetProtocol(), s.major)
	}
	return &filterv1.HelloReply{Name: "versioned", Version: "1", Protocol: s.major, DataAddress: "data.sock"}, nil
}

func (versionedServer) Configure(context.Context, *filterv1.ConfigureRequest) (*filterv1.ConfigureReply, error) {
	return &filterv1.ConfigureReply{Subscription: &filterv1.Subscription{Phases: []filterv1.Phase{filterv1.Phase_PHASE_REQUEST_HEADERS}}}, nil
}

// TestVersions has hosts and plugins of different majors meet through go-plugin's negotiation: they settle on the newest that both have, for that
// generation, and one without is refused with both numbers while the generation before it serves on.
func TestVersions(t *testing.T) {
	for _, test := range []struct {
		name          string
		offer, plugin string // offer "": what this restartd offers
		refused       string
	}{
		{name: "both have 1", plugin: "1"},
		{name: "the plugin has a newer one too", plugin: "1,2"},
		{name: "the host has a newer one too", offer: "1,2", plugin: "1"},
		{name: "the host has two newer ones too", offer: "3,2,1", plugin: "1"},
		{name: "the plugin has only a newer one", plugin: "2", refused: "version 2 of the filter protocol, this restartd 1: install a plugin built for it"},
		{name: "the plugin has only newer ones", plugin: "3,2", refused: "version 2 of the filter protocol, this restartd 1: install a plugin built for it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			r.apply(object("{}", nil))
			before := serving(r.until("serving", one))
			o := object("{}", func(p *configv1.Plugin) {
				p.Environment = []string{"FAKE_MAJORS=" + test.plugin}
				if test.offer != "" {
					p.Environment = append(p.Environment, "PLUGIN_PROTOCOL_VERSIONS="+test.offer)
				}
			})
			if test.refused == "" {
				r.apply(o)
				g := serving(r.until("serving", one))
				if g.GetProgramName() != "versioned" || g.GetProtocol() != 1 {
					t.Errorf("%v; want a generation of version 1", g)
				}
				return
			}
			got := r.Prepare([]*configv1.Object{o})
			if len(got) != 1 || got[0].GetField() != "command" || !strings.Contains(got[0].GetMessage(), test.refused) {
				t.Errorf("%v; want it refused with %q", got, test.refused)
			}
			r.Abort()
			if g := serving(r.until("serving", one)); g.GetPid() != before.GetPid() {
				t.Errorf("pid %d serves after the refusal, want %d", g.GetPid(), before.GetPid())
			}
		})
	}
}

// TestMajors is the offer and the choice of a restartd that speaks two.
func TestMajors(t *testing.T) {
	two := majors{2, 1}
	if two.String() != "2,1" {
		t.Errorf("it offers %q, want the newest first", two)
	}
	for version, want := range map[string]major{"1": 1, "2": 2, "3": 0, "0": 0, "": 0, "1.0": 0} {
		got, err := two.choose(version)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("version %q: %d, %v; want %d", version, got, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "this restartd 2 and 1: install") {
			t.Errorf("version %q: %v; want both sides' numbers", version, err)
		}
	}
	for _, v := range spoken() {
		if versioned()[v] == nil {
			t.Errorf("version %d is offered and has no client", v)
		}
	}
	_, err := contact(t.Context(), &handshake{kind: "frames", address: "/nowhere", major: 9}, os.Getpid(), nil)
	if err == nil || !strings.Contains(err.Error(), "version 9") {
		t.Errorf("a survivor of a newer restartd: %v; want its version", err)
	}
}
