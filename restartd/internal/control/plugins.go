package control

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/hello"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// WatchPlugins implements restart/v1.
func (s *Server) WatchPlugins(r *restartv1.WatchPluginsRequest, stream restartv1.Restart_WatchPluginsServer) error {
	mine := hello.Mine("restartd", "restart/v1")
	if err := hello.Check(mine, r.GetHello()); err != nil {
		return err
	}
	tables, done, err := s.Plugins.Watch()
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer done()
	for {
		select {
		case t, ok := <-tables:
			if !ok {
				return status.Error(codes.Unavailable, "restartd is stopping")
			}
			if mine != nil {
				t = &restartv1.PluginTable{Hello: mine, Plugins: t.GetPlugins()}
				mine = nil
			}
			if err := stream.Send(t); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

// SwapPlugin implements restart/v1. Like an upgrade it does not need its caller.
func (s *Server) SwapPlugin(r *restartv1.SwapPluginRequest, stream restartv1.Restart_SwapPluginServer) error {
	events, err := s.Plugins.Swap(r)
	return pluginEvents(events, err, stream)
}

// PluginMetrics implements restart/v1.
func (s *Server) PluginMetrics(ctx context.Context, _ *restartv1.PluginMetricsRequest) (*restartv1.PluginMetricsReply, error) {
	r, err := s.Plugins.Metrics(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return r, nil
}

// RollbackPlugin implements restart/v1.
func (s *Server) RollbackPlugin(r *restartv1.RollbackPluginRequest, stream restartv1.Restart_RollbackPluginServer) error {
	events, err := s.Plugins.Rollback(r.GetName())
	return pluginEvents(events, err, stream)
}

func pluginEvents(events <-chan *restartv1.PluginEvent, err error, stream grpc.ServerStreamingServer[restartv1.PluginEvent]) error {
	if err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return nil
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}
