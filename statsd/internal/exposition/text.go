package exposition

import (
	"bufio"
	"io"
	"math"
	"strconv"
	"strings"

	"retinue.dev/libs/region"
)

// Own is a series of statsd itself.
type Own struct {
	Name, Help string
	Kind       region.Kind // Counter or Gauge
	Labels     []region.Label
	Value      float64
}

// Write streams all families whose name contains one of match (all, when there is none), then statsd's own, which come
// ordered by name. It buffers a few kilobytes (of Protobuf one family) and never the whole.
func (s *Source) Write(w io.Writer, format Format, match []string, own []Own) error {
	if format == Protobuf {
		return s.writeProtobuf(w, match, own)
	}
	out := &writer{Writer: bufio.NewWriterSize(w, 32<<10), format: format}
	var head *family
	err := s.walk(match, func(fam *family, g *group, v *variant, cells []uint64) error {
		if fam != head {
			out.head(fam.name, fam.help, fam.kind)
			head = fam
		}
		out.series(fam, g.text, v.text, cells)
		return out.failure()
	})
	if err != nil {
		return err
	}
	last := ""
	for _, o := range own {
		if !matches(o.Name, match) {
			continue
		}
		if o.Name != last {
			out.head(o.Name, o.Help, o.Kind)
			last = o.Name
		}
		out.sample(o.Name, labelText(o.Labels), "", "")
		out.float(o.Value)
	}
	if format == OpenMetrics {
		out.WriteString("# EOF\n")
	}
	return out.Flush()
}

func cellsOf(kind region.Kind) int {
	if kind == region.Histogram {
		return region.HistogramCells
	}
	return 1
}

// writer formats lines; the bufio.Writer remembers the first error.
type writer struct {
	*bufio.Writer
	format Format
	buffer []byte
}

// failure is the error that the writer remembers: whoever asked has gone.
func (w *writer) failure() error {
	_, err := w.Writer.Write(nil)
	return err
}

// head writes HELP and TYPE. In OpenMetrics the samples of a counter must end in _total: one whose name does not, as
// Envoy's rq_xx, is told as unknown there, so that a name is the same whatever was negotiated.
func (w *writer) head(name, help string, kind region.Kind) {
	kinds := map[region.Kind]string{region.Counter: "counter", region.Gauge: "gauge", region.Histogram: "histogram"}
	word, escapes := kinds[kind], helpEscapes
	if w.format == OpenMetrics {
		escapes = omEscapes
		if kind == region.Counter {
			var total bool
			if name, total = strings.CutSuffix(name, "_total"); !total {
				word = "unknown"
			}
		}
	}
	if help != "" {
		w.WriteString("# HELP " + name + " ")
		escapes.WriteString(w, help)
		w.WriteByte('\n')
	}
	w.WriteString("# TYPE " + name + " " + word + "\n")
}

// sample writes name{labels} and the space before the value. le is the bound of a bucket, "" for none.
func (w *writer) sample(name, group, variant, le string) {
	w.WriteString(name)
	open := byte('{')
	for _, text := range []string{group, variant} {
		if text != "" {
			w.WriteByte(open)
			w.WriteString(text)
			open = ','
		}
	}
	if le != "" {
		w.WriteByte(open)
		w.WriteString(`le="` + le + `"`)
		open = ','
	}
	if open == ',' {
		w.WriteByte('}')
	}
	w.WriteByte(' ')
}

func (w *writer) float(v float64) {
	w.buffer = strconv.AppendFloat(w.buffer[:0], v, 'g', -1, 64)
	w.Writer.Write(append(w.buffer, '\n'))
}

func (w *writer) uint(v uint64) {
	w.buffer = strconv.AppendUint(w.buffer[:0], v, 10)
	w.Writer.Write(append(w.buffer, '\n'))
}

func (w *writer) series(fam *family, group, variant string, cells []uint64) {
	scale := Scale(fam.unit, fam.exposed)
	if fam.kind == region.Histogram {
		w.histogram(fam, group, variant, cells, scale)
		return
	}
	w.sample(fam.name, group, variant, "")
	switch {
	case scale != 1:
		w.float(float64(int64(cells[0])) / scale)
	case fam.kind == region.Gauge:
		w.buffer = strconv.AppendInt(w.buffer[:0], int64(cells[0]), 10)
		w.Writer.Write(append(w.buffer, '\n'))
	default:
		w.uint(cells[0])
	}
}

// histogram writes a classic histogram. Its bounds are bounds of the exponential buckets, so that every count is exact.
func (w *writer) histogram(fam *family, group, variant string, cells []uint64, scale float64) {
	var below uint64
	cell := region.HistogramZero
	for _, power := range classicPowers(fam.unit) {
		for last := region.HistogramFirst + power*region.BucketsPerOctave; cell <= last; cell++ {
			below += cells[cell]
		}
		le := math.Ldexp(1, power) / scale
		w.buffer = strconv.AppendFloat(w.buffer[:0], le, 'f', -1, 64)
		if w.format == OpenMetrics && le == math.Trunc(le) {
			w.buffer = append(w.buffer, ".0"...) // OpenMetrics' canonical form of a whole bound
		}
		w.sample(fam.name+"_bucket", group, variant, string(w.buffer))
		w.uint(below)
	}
	for ; cell < region.HistogramCells; cell++ {
		below += cells[cell]
	}
	w.sample(fam.name+"_bucket", group, variant, "+Inf")
	w.uint(below)
	w.sample(fam.name+"_sum", group, variant, "")
	w.float(float64(cells[region.HistogramSum]) / scale)
	w.sample(fam.name+"_count", group, variant, "")
	w.uint(below)
}

// classicPowers are the exponents of 2 of a classic histogram's bounds: 1/16 ms to 65.5 s for times, an octave each; 1 to
// 2^30 in steps of two octaves for the rest.
func classicPowers(unit string) []int {
	switch unit {
	case region.UnitTicks, "us":
		return powersUS
	case "ms":
		return powersMS
	}
	return powersOther
}

var powersUS, powersMS, powersOther = powers(6, 26, 1), powers(0, 17, 1), powers(0, 30, 2)

func powers(from, to, step int) (list []int) {
	for p := from; p <= to; p += step {
		list = append(list, p)
	}
	return list
}

// exposedUnit is the unit of what is shown. Times finer than milliseconds are shown in them, as Envoy shows them, unless
// their schema says otherwise.
func exposedUnit(unit, exposed string) string {
	switch {
	case exposed != "":
		return exposed
	case unit == "us" || unit == region.UnitTicks:
		return "ms"
	}
	return unit
}

// Scale is what a stored value is divided by to be exposed.
func Scale(unit, exposed string) float64 {
	in := map[string]float64{"us": 1e6, region.UnitTicks: 1024e3, "ms": 1e3, "s": 1}
	exposed = exposedUnit(unit, exposed)
	if in[unit] == 0 || in[exposed] == 0 {
		return 1
	}
	return in[unit] / in[exposed]
}
