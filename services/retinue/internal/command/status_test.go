package command

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// ending is a restartd whose first generation has drained when it is asked for the second time.
type ending struct {
	restartv1.UnimplementedRestartServer
	asked atomic.Int32
	state restartv1.State // then
}

func (e *ending) Status(context.Context, *restartv1.StatusRequest) (*restartv1.StatusReply, error) {
	state := restartv1.State_STATE_DRAINING
	if e.asked.Add(1) > 1 {
		state = e.state
	}
	return &restartv1.StatusReply{Generations: []*restartv1.Generation{{Number: 1, State: state}}}, nil
}

// TestStatusOfAGenerationThatEnds: one that has drained between two questions is no daemon that is down; one that drains and is silent is.
func TestStatusOfAGenerationThatEnds(t *testing.T) {
	for _, test := range []struct {
		state restartv1.State
		down  bool
	}{{restartv1.State_STATE_GONE, false}, {restartv1.State_STATE_FAILED, false}, {restartv1.State_STATE_DRAINING, true}} {
		dir := t.TempDir()
		l, err := net.Listen("unix", filepath.Join(dir, "restartd.sock"))
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		restartv1.RegisterRestartServer(server, &ending{state: test.state})
		go func() { _ = server.Serve(l) }()
		t.Cleanup(server.Stop)
		var out bytes.Buffer
		if code := run([]string{"status", "--dir", dir}, &out, &out); code != exitFailed { // the others are down
			t.Errorf("%v: exit %d", test.state, code)
		}
		if got := strings.Contains(out.String(), "proxyd-1  DOWN"); got != test.down {
			t.Errorf("%v: proxyd-1 is down: %v, want %v\n%s", test.state, got, test.down, out.String())
		}
	}
}
