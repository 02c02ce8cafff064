package top

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"retinue.dev/libs/region"
)

// View is what is shown: rates over the time between two samples. Times are in milliseconds.
type View struct {
	Time        time.Time    `json:"time"`
	Seconds     float64      `json:"seconds"` // that the rates are over
	Total       Total        `json:"total"`
	Clusters    []Cluster    `json:"clusters,omitempty"`
	Listeners   []Listener   `json:"listeners,omitempty"`
	Workers     []Worker     `json:"workers,omitempty"`
	Generations []Generation `json:"generations,omitempty"`
}

// Total is the suite as a whole.
type Total struct {
	Requests    float64    `json:"requests_per_second"`
	Classes     [5]float64 `json:"responses_per_second"` // 1xx to 5xx
	P50         float64    `json:"p50_ms"`
	P90         float64    `json:"p90_ms"`
	P99         float64    `json:"p99_ms"`
	Connections uint64     `json:"connections"`
	New         float64    `json:"connections_per_second"`
	Active      uint64     `json:"requests_active"`
	Received    float64    `json:"received_bytes_per_second"`
	Sent        float64    `json:"sent_bytes_per_second"`
	RequestsAll uint64     `json:"requests_total"`
	Serving     int        `json:"generations_serving"`
	Draining    int        `json:"generations_draining"`
}

// Cluster is one cluster.
type Cluster struct {
	Name        string  `json:"name"`
	Healthy     uint64  `json:"healthy"`
	Members     uint64  `json:"members"`
	Requests    float64 `json:"requests_per_second"`
	Errors      float64 `json:"errors_per_second"` // 5xx
	P50         float64 `json:"p50_ms"`
	P99         float64 `json:"p99_ms"`
	Active      uint64  `json:"requests_active"`
	Pending     uint64  `json:"requests_pending"`
	Connections uint64  `json:"connections"`
	Failed      float64 `json:"connect_failures_per_second"`
	Retries     float64 `json:"retries_per_second"`
	Timeouts    float64 `json:"timeouts_per_second"`
}

// Listener is one listener with its connection manager or TCP proxy.
type Listener struct {
	Name        string  `json:"name"`
	Connections uint64  `json:"connections"`
	New         float64 `json:"connections_per_second"`
	Requests    float64 `json:"requests_per_second"`
	ClientError float64 `json:"4xx_per_second"`
	ServerError float64 `json:"5xx_per_second"`
	P50         float64 `json:"p50_ms"`
	P99         float64 `json:"p99_ms"`
	Received    float64 `json:"received_bytes_per_second"`
	Sent        float64 `json:"sent_bytes_per_second"`
	Refused     uint64  `json:"refused_total"`
}

// Worker is one worker loop of one generation.
type Worker struct {
	Generation  uint64  `json:"generation"`
	Worker      uint32  `json:"worker"`
	State       string  `json:"state"`
	Connections uint64  `json:"connections"`
	New         float64 `json:"connections_per_second"`
	Active      uint64  `json:"requests_active"`
	Requests    float64 `json:"requests_per_second"`
	Received    float64 `json:"received_bytes_per_second"`
	Sent        float64 `json:"sent_bytes_per_second"`
}

// Generation is one process of proxyd, and what still holds it.
type Generation struct {
	Number      uint64 `json:"generation"`
	State       string `json:"state"`
	Uptime      uint64 `json:"uptime_seconds"`
	Workers     int    `json:"workers"`
	Connections uint64 `json:"connections"`
	Active      uint64 `json:"requests_active"`
	Upgraded    uint64 `json:"upgraded"`
	Tunnels     uint64 `json:"tcp"`
	Held        []Held `json:"held_by,omitempty"` // listeners with connections, the fullest first
}

// Held is what one listener holds of a generation.
type Held struct {
	Listener    string `json:"listener"`
	Connections uint64 `json:"connections"`
	Active      uint64 `json:"requests_active"`
}

// compare makes the view of two samples.
func compare(before, now *sample) View {
	v := View{Time: now.at, Seconds: now.at.Sub(before.at).Seconds()}
	c := change{v.Seconds}
	v.Generations = generations(now)
	v.Workers = c.workers(before, now, v.Generations)
	v.Clusters = c.clusters(before.clusters, now.clusters)
	v.Listeners = c.listeners(before, now)
	v.Total = c.total(before, now)
	for _, g := range v.Generations {
		switch state, _, _ := strings.Cut(g.State, ","); state {
		case "serving":
			v.Total.Serving++
		case "draining":
			v.Total.Draining++
		}
	}
	return v
}

// change turns counters into rates.
type change struct{ seconds float64 }

func (c change) rate(before, now uint64) float64 {
	if now <= before || c.seconds <= 0 {
		return 0
	}
	return float64(now-before) / c.seconds
}

func (c change) of(before, now rows, name, column string) float64 {
	return c.rate(before.value(name, column), now.value(name, column))
}

func (c change) all(before, now rows, column string) float64 {
	return c.rate(before.sum(column), now.sum(column))
}

func quantiles(before, now []uint64, q ...float64) []float64 {
	between := make([]uint64, region.HistogramCells)
	for i := range between {
		if now[i] > before[i] {
			between[i] = now[i] - before[i]
		}
	}
	out := make([]float64, len(q))
	for i := range q {
		out[i] = region.HistogramQuantile(between, q[i]) / 1024 // times are counted in region.UnitTicks
	}
	return out
}

func (c change) total(before, now *sample) Total {
	t := Total{
		Requests: c.all(before.https, now.https, "downstream_rq_total"), RequestsAll: now.https.sum("downstream_rq_total"),
		Connections: now.listeners.sum("downstream_cx_active"), New: c.all(before.listeners, now.listeners, "downstream_cx_total"),
		Active:   now.https.sum("downstream_rq_active"),
		Received: c.all(before.https, now.https, "downstream_cx_rx_bytes_total") + c.all(before.tcps, now.tcps, "downstream_cx_rx_bytes_total"),
		Sent:     c.all(before.https, now.https, "downstream_cx_tx_bytes_total") + c.all(before.tcps, now.tcps, "downstream_cx_tx_bytes_total"),
	}
	was, is := make([]uint64, region.HistogramCells), make([]uint64, region.HistogramCells)
	for name := range now.https.of {
		for i, n := range before.https.histogram(name, "downstream_rq_time") {
			was[i] += n
		}
		for i, n := range now.https.histogram(name, "downstream_rq_time") {
			is[i] += n
		}
	}
	q := quantiles(was, is, 0.5, 0.9, 0.99)
	t.P50, t.P90, t.P99 = q[0], q[1], q[2]
	for i := range t.Classes {
		t.Classes[i] = c.all(before.https, now.https, "downstream_rq_xx/"+string(rune('1'+i)))
	}
	return t
}

func (c change) clusters(before, now rows) []Cluster {
	var list []Cluster
	for _, name := range now.names() {
		q := quantiles(before.histogram(name, "upstream_rq_time"), now.histogram(name, "upstream_rq_time"), 0.5, 0.99)
		list = append(list, Cluster{
			Name: name, Healthy: now.value(name, "membership_healthy"), Members: now.value(name, "membership_total"),
			Requests: c.of(before, now, name, "upstream_rq_total"), Errors: c.of(before, now, name, "upstream_rq_xx/5"),
			P50: q[0], P99: q[1], Active: now.value(name, "upstream_rq_active"), Pending: now.value(name, "upstream_rq_pending_active"),
			Connections: now.value(name, "upstream_cx_active"), Failed: c.of(before, now, name, "upstream_cx_connect_fail"),
			Retries: c.of(before, now, name, "upstream_rq_retry"), Timeouts: c.of(before, now, name, "upstream_rq_timeout"),
		})
	}
	slices.SortStableFunc(list, func(a, b Cluster) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(b.Connections, a.Connections))
	})
	return list
}

func (c change) listeners(before, now *sample) []Listener {
	var list []Listener
	for _, name := range now.listeners.names() {
		q := quantiles(before.https.histogram(name, "downstream_rq_time"), now.https.histogram(name, "downstream_rq_time"), 0.5, 0.99)
		bytes := func(column string) float64 {
			return c.of(before.https, now.https, name, column) + c.of(before.tcps, now.tcps, name, column)
		}
		list = append(list, Listener{
			Name: name, Connections: now.listeners.value(name, "downstream_cx_active"),
			New: c.of(before.listeners, now.listeners, name, "downstream_cx_total"), Requests: c.of(before.https, now.https, name, "downstream_rq_total"),
			ClientError: c.of(before.https, now.https, name, "downstream_rq_xx/4"), ServerError: c.of(before.https, now.https, name, "downstream_rq_xx/5"),
			P50: q[0], P99: q[1], Received: bytes("downstream_cx_rx_bytes_total"), Sent: bytes("downstream_cx_tx_bytes_total"),
			Refused: now.listeners.value(name, "downstream_cx_overflow") + now.listeners.value(name, "downstream_global_cx_overflow") +
				now.listeners.value(name, "downstream_cx_shed"),
		})
	}
	slices.SortStableFunc(list, func(a, b Listener) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(b.Connections, a.Connections))
	})
	return list
}

// silence is how long a main side may be quiet before it is called stuck.
const silence = 3 * time.Second

// states as proxyd's gauge server.state numbers them.
var states = []string{"serving", "draining", "starting"}

func generations(now *sample) []Generation {
	var list []Generation
	at := map[uint64]int{}
	held := map[uint64]map[string]*Held{}
	for _, w := range now.writers {
		i, known := at[w.Generation]
		if !known {
			i = len(list)
			at[w.Generation] = i
			list = append(list, Generation{Number: w.Generation, State: "dead"})
			held[w.Generation] = map[string]*Held{}
		}
		g := &list[i]
		if !w.Live {
			continue
		}
		if w.Worker == region.MainWorker {
			g.Uptime = w.server.sum("uptime")
			if state := w.server.sum("state"); state < uint64(len(states)) {
				g.State = states[state]
			}
			switch {
			case w.stopped:
				g.State += ", stopped"
			case w.silent >= silence:
				g.State += ", stuck"
			}
			continue
		}
		g.Workers++
		g.Connections += w.listeners.sum("downstream_cx_active")
		g.Active += w.https.sum("downstream_rq_active")
		g.Upgraded += w.https.sum("downstream_cx_upgrades_active")
		g.Tunnels += w.tcps.sum("downstream_cx_active")
		for name := range w.listeners.of {
			connections, active := w.listeners.value(name, "downstream_cx_active"), w.https.value(name, "downstream_rq_active")
			if connections+active == 0 {
				continue
			}
			h := held[w.Generation][name]
			if h == nil {
				h = &Held{Listener: name}
				held[w.Generation][name] = h
			}
			h.Connections += connections
			h.Active += active
		}
	}
	for i := range list {
		for _, h := range held[list[i].Number] {
			list[i].Held = append(list[i].Held, *h)
		}
		slices.SortFunc(list[i].Held, func(a, b Held) int {
			return cmp.Or(cmp.Compare(b.Connections, a.Connections), strings.Compare(a.Listener, b.Listener))
		})
	}
	return list
}

func (c change) workers(before, now *sample, generations []Generation) []Worker {
	var list []Worker
	for _, w := range now.writers {
		if w.Worker == region.MainWorker {
			continue
		}
		var was writer
		for _, b := range before.writers {
			if b.Generation == w.Generation && b.Worker == w.Worker {
				was = b
			}
		}
		row := Worker{
			Generation: w.Generation, Worker: w.Worker, State: "dead",
			Connections: w.listeners.sum("downstream_cx_active"), Active: w.https.sum("downstream_rq_active"),
		}
		if was.https.table != nil {
			row.New = c.all(was.listeners, w.listeners, "downstream_cx_total")
			row.Requests = c.all(was.https, w.https, "downstream_rq_total")
			row.Received = c.all(was.https, w.https, "downstream_cx_rx_bytes_total") + c.all(was.tcps, w.tcps, "downstream_cx_rx_bytes_total")
			row.Sent = c.all(was.https, w.https, "downstream_cx_tx_bytes_total") + c.all(was.tcps, w.tcps, "downstream_cx_tx_bytes_total")
		}
		for _, g := range generations {
			if w.Live && g.Number == w.Generation {
				row.State = g.State
			}
		}
		list = append(list, row)
	}
	return list
}
