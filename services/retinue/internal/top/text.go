package top

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Views that can be asked for by name; the first is what is shown without one.
var Views = []string{"overview", "clusters", "listeners", "workers", "draining"}

// column of a table: numbers are set to the right.
type column struct {
	head  string
	right bool
}

// line is one of the screen; heads of tables are bold there.
type line struct {
	text string
	bold bool
}

func left(head string) column  { return column{head, false} }
func right(head string) column { return column{head, true} }

// text renders a view as lines. width cuts them, and height bounds the lines, 0 for no bound; what is left out is said.
func (v *View) text(what string, width, height int) []line {
	lines := v.head()
	room := func(share int) int {
		if height == 0 {
			return 1 << 30
		}
		return max(2, (height-len(lines))*share/100-3)
	}
	switch what {
	case "overview":
		lines = append(lines, line{})
		lines = append(lines, v.clusterTable(room(60), false)...)
		lines = append(lines, line{})
		lines = append(lines, v.listenerTable(room(100))...)
		if v.Total.Draining > 0 {
			lines = append(lines, line{})
			lines = append(lines, v.generationTable(room(100))...)
		}
	case "clusters":
		lines = append(append(lines, line{}), v.clusterTable(room(100), true)...)
	case "listeners":
		lines = append(append(lines, line{}), v.listenerTable(room(100))...)
	case "workers":
		lines = append(append(lines, line{}), v.workerTable(room(100))...)
	case "draining":
		lines = append(append(lines, line{}), v.generationTable(room(100))...)
	}
	if height > 0 && len(lines) > height {
		lines = lines[:height]
	}
	if width > 0 {
		for i, l := range lines {
			if utf8.RuneCountInString(l.text) > width {
				lines[i].text = string([]rune(l.text)[:width])
			}
		}
	}
	return lines
}

func (v *View) head() []line {
	t := v.Total
	state := "nothing serves"
	if t.Serving > 0 {
		state = fmt.Sprintf("%s serving", plural(t.Serving, "generation"))
	}
	if t.Draining > 0 {
		state += fmt.Sprintf(", %d draining", t.Draining)
	}
	return []line{
		{fmt.Sprintf("Retinue  %s  %s", v.Time.Format("15:04:05"), state), true},
		{fmt.Sprintf("requests     %s/s  (2xx %s  3xx %s  4xx %s  5xx %s), %s under way, %s in all", number(t.Requests), number(t.Classes[1]),
			number(t.Classes[2]), number(t.Classes[3]), number(t.Classes[4]), number(float64(t.Active)), number(float64(t.RequestsAll))), false},
		{fmt.Sprintf("latency      p50 %s  p90 %s  p99 %s", ms(t.P50), ms(t.P90), ms(t.P99)), false},
		{fmt.Sprintf("connections  %s open, %s new/s; %s/s in, %s/s out", number(float64(t.Connections)), number(t.New), size(t.Received), size(t.Sent)), false},
	}
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func (v *View) clusterTable(room int, wide bool) []line {
	columns := []column{left("CLUSTER"), right("HOSTS"), right("RQ/S"), right("5XX/S"), right("P50"), right("P99"), right("ACTIVE"), right("WAIT"), right("CX")}
	if wide {
		columns = append(columns, right("CX FAIL/S"), right("RETRY/S"), right("TIMEOUT/S"))
	}
	return grid(columns, len(v.Clusters), room, "no clusters", func(i int) []string {
		c := v.Clusters[i]
		row := []string{
			c.Name, fmt.Sprintf("%d/%d", c.Healthy, c.Members), number(c.Requests), number(c.Errors), ms(c.P50), ms(c.P99),
			number(float64(c.Active)), number(float64(c.Pending)), number(float64(c.Connections)),
		}
		if wide {
			row = append(row, number(c.Failed), number(c.Retries), number(c.Timeouts))
		}
		return row
	})
}

func (v *View) listenerTable(room int) []line {
	columns := []column{
		left("LISTENER"), right("CX"), right("NEW/S"), right("RQ/S"), right("4XX/S"), right("5XX/S"), right("P50"), right("P99"),
		right("IN/S"), right("OUT/S"), right("REFUSED"),
	}
	return grid(columns, len(v.Listeners), room, "no listeners", func(i int) []string {
		l := v.Listeners[i]
		return []string{
			l.Name, number(float64(l.Connections)), number(l.New), number(l.Requests), number(l.ClientError), number(l.ServerError),
			ms(l.P50), ms(l.P99), size(l.Received), size(l.Sent), number(float64(l.Refused)),
		}
	})
}

func (v *View) workerTable(room int) []line {
	columns := []column{
		left("WORKER"), left("STATE"), right("CX"), right("NEW/S"), right("RQ/S"), right("ACTIVE"), right("IN/S"), right("OUT/S"),
	}
	return grid(columns, len(v.Workers), room, "no workers", func(i int) []string {
		w := v.Workers[i]
		return []string{
			fmt.Sprintf("%d.%d", w.Generation, w.Worker), w.State, number(float64(w.Connections)), number(w.New), number(w.Requests),
			number(float64(w.Active)), size(w.Received), size(w.Sent),
		}
	})
}

func (v *View) generationTable(room int) []line {
	columns := []column{
		left("GENERATION"), left("STATE"), right("UP"), right("WORKERS"), right("CX"), right("ACTIVE"), right("UPGRADED"), right("TCP"), left("HELD BY"),
	}
	return grid(columns, len(v.Generations), room, "no generations", func(i int) []string {
		g := v.Generations[i]
		var held []string
		for j, h := range g.Held {
			if j == 3 {
				held = append(held, fmt.Sprintf("%d more", len(g.Held)-j))
				break
			}
			held = append(held, fmt.Sprintf("%s %d", h.Listener, h.Connections))
		}
		return []string{
			fmt.Sprint(g.Number), g.State, (time.Duration(g.Uptime) * time.Second).String(), fmt.Sprint(g.Workers), number(float64(g.Connections)),
			number(float64(g.Active)), number(float64(g.Upgraded)), number(float64(g.Tunnels)), strings.Join(held, ", "),
		}
	})
}

// maxName keeps a long name from pushing the figures off the screen.
const maxName = 32

// grid lines up n rows, of which room are shown.
func grid(columns []column, n, room int, none string, row func(int) []string) []line {
	heads := make([]string, len(columns))
	for i, c := range columns {
		heads[i] = c.head
	}
	cells := [][]string{heads}
	for i := range min(n, room) {
		r := row(i)
		for j := range r {
			r[j] = printable(r[j])
		}
		if name := []rune(r[0]); len(name) > maxName {
			r[0] = string(name[:maxName-1]) + "…"
		}
		cells = append(cells, r)
	}
	widths := make([]int, len(columns))
	for _, r := range cells {
		for i, text := range r {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	var lines []line
	for at, r := range cells {
		var b strings.Builder
		for i, text := range r {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if columns[i].right {
				text = pad + text
			} else {
				text += pad
			}
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(text)
		}
		lines = append(lines, line{strings.TrimRight(b.String(), " "), at == 0})
	}
	switch {
	case n == 0:
		lines = append(lines, line{none, false})
	case n > room:
		lines = append(lines, line{fmt.Sprintf("… and %d more", n-room), false})
	}
	return lines
}

// printable keeps what a name may hold from the terminal: the region's content is not believed.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// number is short: three or four figures and a unit.
func number(v float64) string {
	switch {
	case v >= 1e9:
		return fmt.Sprintf("%.1fG", v/1e9)
	case v >= 1e6:
		return fmt.Sprintf("%.1fM", v/1e6)
	case v >= 1e5:
		return fmt.Sprintf("%.0fk", v/1e3)
	case v >= 100 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

func ms(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 1:
		return fmt.Sprintf("%.0fµs", v*1000)
	case v < 10:
		return fmt.Sprintf("%.1fms", v)
	case v < 10_000:
		return fmt.Sprintf("%.0fms", v)
	}
	return fmt.Sprintf("%.0fs", v/1000)
}

func size(v float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for v >= 1000 && i < len(units)-1 {
		v /= 1000
		i++
	}
	if v < 10 && i > 0 {
		return fmt.Sprintf("%.1f%s", v, units[i])
	}
	return fmt.Sprintf("%.0f%s", v, units[i])
}
