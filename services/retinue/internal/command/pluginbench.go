package command

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// pluginBench calls a running plugin as a worker does, without the proxy: what a call of it takes by itself.
func pluginBench(sh *shell) *cobra.Command {
	var seconds time.Duration
	c := &cobra.Command{
		Use: "bench NAME", Short: "Measure what a call of the running plugin takes, without the proxy", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := sh.findPlugin(args[0])
			if err != nil {
				return err
			}
			var g *restartv1.PluginGeneration
			for _, candidate := range p.GetGenerations() {
				if candidate.GetState() == restartv1.PluginState_PLUGIN_STATE_SERVING {
					g = candidate
				}
			}
			if g == nil {
				return fmt.Errorf("plugin %q does not serve: %s", args[0], p.GetMessage())
			}
			if g.GetSubscription().GetObserveOnly() {
				return fmt.Errorf("plugin %q observes only: it is never waited for", args[0])
			}
			type result struct {
				Batch  int     `json:"batch"`
				P50    float64 `json:"p50_us"`
				P99    float64 `json:"p99_us"`
				PerSec float64 `json:"calls_per_second"`
			}
			var results []result
			for _, batch := range []int{1, 16, 64} {
				times, err := benchCalls(g, batch, seconds)
				if err != nil {
					return fmt.Errorf("plugin %q: %w", args[0], err)
				}
				var sum time.Duration
				for _, d := range times {
					sum += d
				}
				slices.Sort(times)
				at := func(q float64) float64 {
					return float64(times[min(int(q*float64(len(times))), len(times)-1)].Nanoseconds()) / 1e3
				}
				results = append(results, result{batch, at(0.5), at(0.99), float64(len(times)*batch) / sum.Seconds()})
			}
			if sh.json {
				return sh.printJSON(results)
			}
			fmt.Fprintf(sh.out, "%s %s, generation %d: calls that are in one write are answered together\n", g.GetProgramName(), g.GetProgramVersion(), g.GetNumber())
			for _, r := range results {
				fmt.Fprintf(sh.out, "  %2d a write   p50 %6.1f µs   p99 %7.1f µs   %8.0f calls/s\n", r.Batch, r.P50, r.P99, r.PerSec)
			}
			return nil
		},
	}
	c.Flags().DurationVar(&seconds, "time", time.Second, "how long each of the three runs takes")
	return c
}

// benchCalls sends batches of calls one after the other, and returns how long each took.
func benchCalls(g *restartv1.PluginGeneration, batch int, length time.Duration) (times []time.Duration, err error) {
	c, err := net.Dial("unix", g.GetDataAddress())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	frame := func(b []byte, m *filterv1.ToPlugin) []byte {
		body, failed := proto.Marshal(m)
		err = errors.Join(err, failed)
		return append(binary.LittleEndian.AppendUint32(b, uint32(len(body))), body...)
	}
	phase := g.GetSubscription().GetPhases()[0]
	opening := frame(nil, &filterv1.ToPlugin{Message: &filterv1.ToPlugin_Opening{Opening: &filterv1.Opening{Protocol: 1, MaxFrameBytes: 1 << 20}}})
	r := bufio.NewReaderSize(c, 256<<10)
	skip := func() error {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		_, err := r.Discard(int(binary.LittleEndian.Uint32(head[:])))
		return err
	}
	if _, err := c.Write(opening); err != nil {
		return nil, err
	}
	if err := skip(); err != nil {
		return nil, err
	}
	headers := []*filterv1.Header{
		{Name: ":method", Value: []byte("GET")},
		{Name: ":path", Value: []byte("/bench/of/a/plugin?with=query")},
		{Name: "user-agent", Value: []byte("retinue plugin bench")},
		{Name: "accept", Value: []byte("*/*")},
	}
	var out []byte
	number := uint64(0)
	for end := time.Now().Add(length); time.Now().Before(end); {
		out = out[:0]
		for range batch {
			number++
			out = frame(out, &filterv1.ToPlugin{Message: &filterv1.ToPlugin_Event{Event: &filterv1.Event{
				Call: number, Stream: number, ConfigId: g.GetConfigId(), Phase: phase, End: true, DeadlineUs: 1e6, Headers: headers,
			}}})
		}
		began := time.Now()
		if err := errors.Join(err, c.SetDeadline(began.Add(5*time.Second))); err != nil {
			return nil, err
		}
		if _, err := c.Write(out); err != nil {
			return nil, err
		}
		for range batch {
			if err := skip(); err != nil {
				return nil, fmt.Errorf("call %d of %d: %w", number, batch, err)
			}
		}
		times = append(times, time.Since(began))
	}
	return times, nil
}
