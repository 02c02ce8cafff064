package push

import (
	"context"
	"log/slog"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"retinue.dev/libs/region"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/statsd/internal/exposition"
	"retinue.dev/statsd/internal/otlp"
)

const (
	udpBytes  = 1400    // what leaves in one packet of an Ethernet, over IPv6 too
	unixBytes = 8 << 10 // what DataDog's agent reads at once
	sendTime  = time.Second
)

// datagrams sends StatsD lines. Counters are sent as what was added since they were last sent, so a datagram that could
// not be handed to the kernel is not lost: its values stay part of the next difference, and nothing has to be queued.
// What was counted before the sender began is not sent.
type datagrams struct {
	config  *configv1.StatsPush
	source  *exposition.Source
	counts  *otlp.Counts
	log     *slog.Logger
	tagged  bool
	network string
	address string
	limit   int
	tags    string

	conn   net.Conn
	begun  bool
	away   bool                       // told
	sent   map[exposition.ID][]uint64 // of counters and histograms
	packet []byte
	taken  []taken // what the packet's lines take from the differences
}

type taken struct {
	id   exposition.ID
	cell int
	upTo uint64
}

func newDatagrams(config *configv1.StatsPush, source *exposition.Source, counts *otlp.Counts, log *slog.Logger) *datagrams {
	d := &datagrams{
		config: config, source: source, counts: counts, log: log, tagged: config.GetFormat() == configv1.StatsPush_FORMAT_DOGSTATSD,
		network: "udp", address: config.GetAddress(), limit: udpBytes, sent: map[exposition.ID][]uint64{},
	}
	if file, ok := strings.CutPrefix(config.GetAddress(), "unix:"); ok {
		d.network, d.address, d.limit = "unixgram", file, unixBytes
	}
	for _, l := range config.GetAttributes() {
		d.tags += "," + clean(l.GetName()) + ":" + clean(l.GetValue())
	}
	_ = d.source.Each(d.begin) // a region that cannot be read now is read at the first turn
	return d
}

// begin notes where counters stand.
func (d *datagrams) begin(s *exposition.Series) error {
	d.begun = true
	if s.Kind != region.Gauge {
		d.sent[s.ID] = append([]uint64(nil), s.Cells...)
	}
	return nil
}

func (d *datagrams) turn(ctx context.Context) {
	if !d.begun {
		_ = d.source.Each(d.begin)
		return
	}
	if d.conn == nil {
		conn, err := (&net.Dialer{Timeout: sendTime}).DialContext(ctx, d.network, d.address)
		if err != nil {
			d.failed(err)
			return
		}
		d.conn = conn
	}
	d.packet, d.taken = d.packet[:0], d.taken[:0]
	err := d.source.Each(d.series)
	if err == nil {
		err = d.flush()
	}
	if err != nil {
		d.conn.Close()
		d.conn = nil
		d.failed(err)
		return
	}
	if d.away {
		d.away = false
		d.log.Info("values are sent again")
	}
}

func (d *datagrams) failed(err error) {
	d.counts.Failed.Add(1)
	if !d.away {
		d.away = true
		d.log.Warn("values cannot be sent now; what is counted meanwhile is sent when they can", "error", err)
	}
}

func (d *datagrams) close() {
	ctx, cancel := context.WithTimeout(context.Background(), sendTime)
	defer cancel()
	d.turn(ctx)
	if d.conn != nil {
		d.conn.Close()
	}
}

func (d *datagrams) series(s *exposition.Series) error {
	name, tags := d.name(s)
	number := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	if s.Kind == region.Gauge {
		v := float64(int64(s.Cells[0])) / s.Scale
		line := name + ":" + number(v) + "|g" + tags
		if v < 0 && !d.tagged {
			line = name + ":0|g\n" + line // a sign means a change to StatsD's first server
		}
		return d.line(line)
	}
	before := d.sent[s.ID]
	if before == nil {
		before = make([]uint64, len(s.Cells))
		d.sent[s.ID] = before
	}
	if s.Kind == region.Counter {
		if s.Cells[0] <= before[0] {
			return nil
		}
		return d.line(name+":"+number(float64(s.Cells[0]-before[0])/s.Scale)+"|c"+tags, taken{s.ID, 0, s.Cells[0]})
	}
	return d.histogram(s, before, name, tags, number)
}

func (d *datagrams) histogram(s *exposition.Series, before []uint64, name, tags string, number func(float64) string) error {
	moved := make([]uint64, len(s.Cells))
	for i := range moved {
		if s.Cells[i] > before[i] {
			moved[i] = s.Cells[i] - before[i]
		}
	}
	count := region.HistogramCount(moved)
	if count == 0 {
		return nil
	}
	if d.tagged {
		for cell := region.HistogramZero; cell < region.HistogramCells; cell++ {
			n := moved[cell]
			if n == 0 {
				continue
			}
			line := name + ":" + strconv.FormatFloat(middle(cell)/s.Scale, 'g', 6, 64) + "|d"
			if n > 1 {
				// The agent takes the whole part of 1/rate: a hair above n, so that it is n.
				line += "|@" + strconv.FormatFloat(math.Nextafter(1/float64(n), 0), 'g', -1, 64)
			}
			if err := d.line(line+tags, taken{s.ID, cell, s.Cells[cell]}); err != nil {
				return err
			}
		}
		before[region.HistogramSum] = s.Cells[region.HistogramSum]
		return nil
	}
	var all []taken
	for cell, v := range s.Cells {
		if moved[cell] > 0 {
			all = append(all, taken{s.ID, cell, v})
		}
	}
	lines := []string{
		name + ".count:" + strconv.FormatUint(count, 10) + "|c",
		name + ".sum:" + number(float64(moved[region.HistogramSum])/s.Scale) + "|c",
	}
	for _, q := range []struct {
		name string
		of   float64
	}{{".p50", 0.5}, {".p90", 0.9}, {".p99", 0.99}} {
		lines = append(lines, name+q.name+":"+strconv.FormatFloat(region.HistogramQuantile(moved, q.of)/s.Scale, 'f', 6, 64)+"|g")
	}
	return d.line(strings.Join(lines, "\n"), all...)
}

// middle is what a value of a bucket most likely was.
func middle(cell int) float64 {
	switch cell {
	case region.HistogramZero:
		return 0
	case region.HistogramOverflow:
		return region.HistogramBound(region.HistogramOverflow - 1)
	}
	return region.HistogramBound(cell) * math.Exp2(-0.5/region.BucketsPerOctave)
}

// name makes a series' name, and its tags where there are any: retinue.cluster.upstream_rq_total|#cluster:api, or
// retinue.cluster.api.upstream_rq_total.
func (d *datagrams) name(s *exposition.Series) (name, tags string) {
	var b strings.Builder
	if d.config.GetPrefix() != "" {
		b.WriteString(d.config.GetPrefix() + ".")
	}
	b.WriteString(s.Schema)
	if d.tagged {
		b.WriteString("." + s.Name)
		for _, list := range [][]region.Label{s.Labels, s.Variant} {
			for _, l := range list {
				tags += "," + l.Name + ":" + clean(l.Value)
			}
		}
		if tags += d.tags; tags != "" {
			tags = "|#" + tags[1:]
		}
		return b.String(), tags
	}
	for _, l := range s.Labels {
		b.WriteString("." + strings.ReplaceAll(clean(l.Value), ".", "_"))
	}
	b.WriteString("." + s.Name)
	for _, l := range s.Variant {
		b.WriteString("." + strings.ReplaceAll(clean(l.Value), ".", "_"))
	}
	return b.String(), ""
}

// clean replaces what has a meaning in a line. Parts of names and tags are at most 200 bytes.
func clean(s string) string {
	if len(s) > 200 {
		s = s[:200]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r <= ' ' || r == 0x7f || strings.ContainsRune(":|@#,", r):
			return '_'
		}
		return r
	}, strings.ToValidUTF8(s, "_"))
}

// line adds a line to the packet, which is sent when the next one does not fit. take is what is not sent again.
func (d *datagrams) line(text string, take ...taken) error {
	if len(d.packet) > 0 && len(d.packet)+1+len(text) > d.limit {
		if err := d.flush(); err != nil {
			return err
		}
	}
	if len(d.packet) > 0 {
		d.packet = append(d.packet, '\n')
	}
	d.packet = append(d.packet, text...)
	d.taken = append(d.taken, take...)
	return nil
}

func (d *datagrams) flush() error {
	if len(d.packet) == 0 {
		return nil
	}
	if err := d.conn.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	if _, err := d.conn.Write(d.packet); err != nil {
		return err
	}
	d.counts.Sent.Add(1)
	for _, t := range d.taken {
		d.sent[t.id][t.cell] = t.upTo
	}
	d.packet, d.taken = d.packet[:0], d.taken[:0]
	return nil
}
