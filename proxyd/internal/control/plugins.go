package control

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	"retinue.dev/proxyd/internal/snapshot"
	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// pluginPatience is how long a snapshot waits for its plugins to be attached. restartd has started them before it is asked for.
const pluginPatience = 2 * time.Second

// followPlugins keeps the registry on restartd's table. While restartd is away the channels stay as they are.
func (s *Server) followPlugins(ctx context.Context) {
	conn, err := peer.Dial(s.env.Socket("restartd.sock"))
	if err != nil {
		s.env.Log.Error("plugins cannot be followed", "error", err)
		return
	}
	defer conn.Close()
	client := restartv1.NewRestartClient(conn)
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		if err := s.watchPlugins(ctx, client); err != nil && ctx.Err() == nil {
			s.env.Log.Debug("restartd is away: plugins stay as they are", "error", err)
		}
		if time.Since(began) > goodSession {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

func (s *Server) watchPlugins(ctx context.Context, client restartv1.RestartClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mine := hello.Mine("proxyd", "restart/v1")
	mine.Generation = s.generation
	stream, err := client.WatchPlugins(ctx, &restartv1.WatchPluginsRequest{Hello: mine}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	greeted := false
	for {
		table, err := stream.Recv()
		if err != nil {
			return err
		}
		if !greeted {
			if err := hello.Check(mine, table.GetHello()); err != nil {
				s.env.Log.Error("restartd is refused", "error", err)
				return err
			}
			greeted = true
		}
		s.plugins.Update(table)
	}
}

// awaitPlugins gives a snapshot's plugins the time to be attached, so that no request finds one missing that is there. One that stays away
// does not hold the snapshot back: its on_error holds. One that wants what cannot be done refuses it.
func (s *Server) awaitPlugins(ctx context.Context, next *snapshot.Snapshot) *configv1.Refusal {
	if len(next.Plugins) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pluginPatience)
	defer cancel()
	missing, err := s.plugins.Await(ctx, next.Plugins)
	if err != nil {
		return &configv1.Refusal{Kind: "plugin", Name: missing, Field: "command", Message: err.Error()}
	}
	if missing != "" {
		s.env.Log.Warn("a plugin is not attached: its on_error holds", "plugin", missing)
	}
	return nil
}
