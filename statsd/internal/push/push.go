// Package push sends values to the receivers that the configuration names: StatsD and DogStatsD by datagrams, OTLP by HTTP
// or gRPC. A receiver that is away costs bounded memory and a counter, and nobody waits for it.
package push

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/statsd/internal/exposition"
	"retinue.dev/statsd/internal/otlp"
)

// Manager runs one sender for each receiver. Its life: New; Set whenever the configuration changes; Close.
type Manager struct {
	source  *exposition.Source
	created func() time.Time // since when the region counts
	log     *slog.Logger

	mu      sync.Mutex
	senders []*running
	ending  sync.WaitGroup // every sender that was ever started and is not done
}

// running is a sender at work.
type running struct {
	config *configv1.StatsPush
	counts *otlp.Counts
	stop   context.CancelFunc
}

// sender sends once for each call of turn. It belongs to one goroutine.
type sender interface {
	// turn reads the region and sends, or queues what is sent meanwhile.
	turn(ctx context.Context)
	// close ends the sender: what can be sent in a moment is sent.
	close()
}

// New makes a manager without receivers. created tells when the region began.
func New(source *exposition.Source, created func() time.Time, log *slog.Logger) *Manager {
	return &Manager{source: source, created: created, log: log}
}

// Set makes the list the receivers; those that were there before go on undisturbed.
func (m *Manager) Set(list []*configv1.StatsPush) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var next []*running
	old := slices.Clone(m.senders)
	for _, config := range list {
		if i := slices.IndexFunc(old, func(r *running) bool { return proto.Equal(r.config, config) }); i >= 0 {
			next = append(next, old[i])
			old = slices.Delete(old, i, i+1)
			continue
		}
		if r := m.start(config); r != nil {
			next = append(next, r)
		}
	}
	m.senders = next
	for _, r := range old {
		r.stop()
	}
}

// Close ends all senders and waits until they have sent their last.
func (m *Manager) Close() {
	m.mu.Lock()
	all := m.senders
	m.senders = nil
	m.mu.Unlock()
	for _, r := range all {
		r.stop()
	}
	m.ending.Wait()
}

func (m *Manager) start(config *configv1.StatsPush) *running {
	r := &running{config: config, counts: &otlp.Counts{}}
	log := m.log.With("push", formatName(config.GetFormat()), "address", shownAddress(config.GetAddress()))
	var s sender
	switch config.GetFormat() {
	case configv1.StatsPush_FORMAT_STATSD, configv1.StatsPush_FORMAT_DOGSTATSD:
		s = newDatagrams(config, m.source, r.counts, log)
	case configv1.StatsPush_FORMAT_OTLP:
		var err error
		if s, err = newCollector(config, m.source, m.created, r.counts, log); err != nil {
			log.Error("a receiver of values is not served", "error", err)
			return nil
		}
	default:
		log.Error("a receiver of values is not served: its format is none that this statsd knows; upgrade statsd")
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	interval := max(time.Duration(config.GetIntervalMs())*time.Millisecond, 100*time.Millisecond)
	m.ending.Go(func() {
		defer s.close()
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				s.turn(ctx)
			}
		}
	})
	return r
}

// Receiver is how the sending to one receiver goes.
type Receiver struct {
	Format, Address       string
	Sent, Failed, Dropped uint64
	Queued                int64
}

// Receivers tells of each.
func (m *Manager) Receivers() []Receiver {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []Receiver
	for _, r := range m.senders {
		list = append(list, Receiver{
			Format: formatName(r.config.GetFormat()), Address: shownAddress(r.config.GetAddress()), Sent: r.counts.Sent.Load(),
			Failed: r.counts.Failed.Load(), Dropped: r.counts.Dropped.Load(), Queued: r.counts.Queued.Load(),
		})
	}
	return list
}

func formatName(f configv1.StatsPush_Format) string {
	return strings.ToLower(strings.TrimPrefix(f.String(), "FORMAT_"))
}

// shownAddress leaves out the query of an endpoint, in which some receivers want a key.
func shownAddress(address string) string {
	address, _, _ = strings.Cut(address, "?")
	return address
}
