package command

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"
	proxyv1 "retinue.dev/services/api/proxy/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
	statsv1 "retinue.dev/services/api/stats/v1"
)

func statusCommand(sh *shell) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show generations, snapshots, listeners and clusters on one screen", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return sh.status() },
	}
}

// status asks every daemon; one that does not answer is shown as down and makes the exit status 1.
func (sh *shell) status() error {
	ctx, cancel := within(5 * time.Second)
	defer cancel()
	down := map[string]error{}
	var config *configv1.StatusReply
	var restart *restartv1.StatusReply
	var stats *statsv1.StatusReply
	ask := func(daemon string, call func() error) {
		if err := call(); err != nil {
			down[daemon] = err
		}
	}
	ask("configd", func() error {
		conn, err := sh.dial("configd")
		if err != nil {
			return err
		}
		defer conn.Close()
		config, err = configv1.NewConfigClient(conn).Status(ctx, &configv1.StatusRequest{})
		return err
	})
	ask("restartd", func() error {
		conn, err := sh.dial("restartd")
		if err != nil {
			return err
		}
		defer conn.Close()
		restart, err = restartv1.NewRestartClient(conn).Status(ctx, &restartv1.StatusRequest{})
		return err
	})
	ask("statsd", func() error {
		conn, err := sh.dial("statsd")
		if err != nil {
			return err
		}
		defer conn.Close()
		stats, err = statsv1.NewStatsClient(conn).Status(ctx, &statsv1.StatusRequest{})
		return err
	})
	proxies := map[uint64]*proxyv1.StatusReply{}
	for _, g := range restart.GetGenerations() {
		if over(g.GetState()) {
			continue
		}
		name := fmt.Sprintf("proxyd-%d", g.GetNumber())
		ask(name, func() error {
			conn, err := sh.dial(name)
			if err != nil {
				return err
			}
			defer conn.Close()
			reply, err := proxyv1.NewProxyClient(conn).Status(ctx, &proxyv1.StatusRequest{})
			if err == nil {
				proxies[g.GetNumber()] = reply
			}
			return err
		})
	}
	if again := sh.endedMeanwhile(ctx, restart, down); again != nil {
		restart = again
	}
	if len(down) == 3 && !sh.json && config == nil && restart == nil && stats == nil && sh.absent() {
		return sh.noSuite()
	}
	if sh.json {
		if err := sh.statusJSON(config, restart, stats, proxies, down); err != nil {
			return err
		}
	} else {
		sh.statusText(config, restart, stats, proxies, down)
	}
	if len(down) > 0 {
		return errReported
	}
	return nil
}

func over(s restartv1.State) bool {
	return s == restartv1.State_STATE_GONE || s == restartv1.State_STATE_FAILED
}

// endedMeanwhile asks restartd again when a generation did not answer: one that has drained and ended since restartd was asked is not down.
// It answers restartd's new word, or nil where nothing has changed.
func (sh *shell) endedMeanwhile(ctx context.Context, restart *restartv1.StatusReply, down map[string]error) *restartv1.StatusReply {
	silent := func(g *restartv1.Generation) bool { return down[fmt.Sprintf("proxyd-%d", g.GetNumber())] != nil }
	if !slices.ContainsFunc(restart.GetGenerations(), silent) {
		return nil
	}
	conn, err := sh.dial("restartd")
	if err != nil {
		return nil
	}
	defer conn.Close()
	again, err := restartv1.NewRestartClient(conn).Status(ctx, &restartv1.StatusRequest{})
	if err != nil {
		return nil
	}
	for _, g := range again.GetGenerations() {
		if over(g.GetState()) {
			delete(down, fmt.Sprintf("proxyd-%d", g.GetNumber()))
		}
	}
	return again
}

func (sh *shell) statusJSON(config *configv1.StatusReply, restart *restartv1.StatusReply, stats *statsv1.StatusReply, proxies map[uint64]*proxyv1.StatusReply, down map[string]error) error {
	out := map[string]any{}
	put := func(name string, m proto.Message) error {
		raw, err := protojson.Marshal(m)
		out[name] = json.RawMessage(raw)
		return err
	}
	if config != nil {
		if err := put("configd", config); err != nil {
			return err
		}
	}
	if restart != nil {
		if err := put("restartd", restart); err != nil {
			return err
		}
	}
	if stats != nil {
		if err := put("statsd", stats); err != nil {
			return err
		}
	}
	for number, p := range proxies {
		if err := put(fmt.Sprintf("proxyd-%d", number), p); err != nil {
			return err
		}
	}
	for name, err := range down {
		out[name] = map[string]string{"down": reason(err)}
	}
	return sh.printJSON(out)
}

func reason(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

func (sh *shell) statusText(config *configv1.StatusReply, restart *restartv1.StatusReply, stats *statsv1.StatusReply, proxies map[uint64]*proxyv1.StatusReply, down map[string]error) {
	line := func(format string, args ...any) { fmt.Fprintf(sh.out, format+"\n", args...) }
	ago := func(unixMS int64) string {
		return time.Since(time.UnixMilli(unixMS)).Round(time.Second).String() + " ago"
	}
	if config != nil {
		line("configd   snapshot %s, %d objects, from %s", config.GetSnapshotId(), config.GetObjects(), config.GetConfigPath())
		if last := config.GetLastReload(); last.GetUnixMs() != 0 {
			word := "applied"
			if !last.GetOk() {
				word = "REFUSED: " + last.GetMessage()
			}
			line("          last reload %s, %s", ago(last.GetUnixMs()), word)
		}
		for _, d := range config.GetDiscovery() {
			if d.GetFailure() != "" {
				line("          cluster %s: endpoints are not found since %s, %d stay: %s", d.GetCluster(), ago(d.GetFailingSinceUnixMs()), d.GetEndpoints(), d.GetFailure())
			}
		}
		for _, w := range config.GetWatchers() {
			name := strings.ToLower(strings.TrimPrefix(w.GetRole().String(), "ROLE_"))
			if w.GetGeneration() != 0 {
				name = fmt.Sprintf("%s-%d", name, w.GetGeneration())
			}
			line("          %-10s %s %s %s", name, w.GetSnapshotId(), w.GetState(), w.GetMessage())
		}
	}
	if stats != nil {
		line("statsd    %d groups, %d series, %d KiB, %d live sheets, metrics on %s", stats.GetGroups(), stats.GetSeries(), stats.GetBytes()>>10, stats.GetSheetsLive(), stats.GetListen())
	}
	if restart != nil {
		line("restartd  %d listeners%s", len(restart.GetListeners()), map[bool]string{true: ", upgrade: " + restart.GetUpgrade()}[restart.GetUpgrade() != ""])
		for _, l := range restart.GetListeners() {
			line("          listener %-12s %s, %d shards", l.GetName(), strings.Join(l.GetAddresses(), " "), l.GetShards())
		}
		for _, g := range restart.GetGenerations() {
			state := strings.ToLower(strings.TrimPrefix(g.GetState().String(), "STATE_"))
			line("generation %d  %-9s pid %d  version %s  started %s  %s", g.GetNumber(), state, g.GetPid(), g.GetVersion(), ago(g.GetStartedUnixMs()), g.GetMessage())
			if g.GetCanaryPercent() > 0 {
				line("          canary: %d %% of new connections", g.GetCanaryPercent())
			}
			if g.GetConnectionsMoved()+g.GetConnectionsTaken()+g.GetConnectionsCut() > 0 {
				line("          live connections: %d taken, %d moved on, %d cut", g.GetConnectionsTaken(), g.GetConnectionsMoved(), g.GetConnectionsCut())
			}
			p := proxies[g.GetNumber()]
			if p == nil {
				continue
			}
			line("          snapshot %s, %d workers, %d connections, %d requests", p.GetSnapshotId(), len(p.GetWorkers()), p.GetConnections(), p.GetStreams())
			for i, c := range p.GetClusters() {
				if i == 20 {
					line("          … and %d clusters more (--json has all)", len(p.GetClusters())-i)
					break
				}
				line("          cluster %-13s %d of %d hosts, %d connections, %d requests", c.GetName(), c.GetHealthy(), c.GetEndpoints(), c.GetConnections(), c.GetRequestsActive())
				for _, e := range c.GetOut() {
					at := ""
					if len(e.GetAddresses()) > 0 {
						at = " (" + strings.Join(e.GetAddresses(), " ") + ")"
					}
					line("          endpoint %-12s %s%s", e.GetAddress(), e.GetState(), at)
				}
			}
		}
		for i, h := range restart.GetHistory() {
			if i == 5 {
				break
			}
			line("history   %s", h)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(down)) {
		line("%-9s DOWN: %s", name, reason(down[name]))
	}
}
