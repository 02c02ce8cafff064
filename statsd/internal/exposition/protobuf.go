package exposition

import (
	"bufio"
	"encoding/binary"
	"io"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/libs/region"
)

// The messages of io.prometheus.client, written field by field (metrics.proto of prometheus/client_model; a test reads
// them with its generated code): a family is as long as its series, and a tree of Go objects for each scrape would be
// many times that.
const (
	familyName, familyHelp, familyType, familyMetric                   = 1, 2, 3, 4
	metricLabel, metricGauge, metricCounter, metricHistogram           = 1, 2, 3, 7
	pairName, pairValue                                                = 1, 2
	simpleValue                                                        = 1
	histogramCount, histogramSum, histogramBucket                      = 1, 2, 3
	histogramSchema, histogramZeroThreshold, histogramZeroCount        = 5, 6, 7
	histogramPositiveSpan, histogramPositiveDelta                      = 12, 13
	bucketCount, bucketBound                                           = 1, 2
	spanOffset, spanLength                                             = 1, 2
	typeCounter, typeGauge, typeHistogram                       uint64 = 0, 1, 4
)

// nativeSchema is Prometheus' name of eight buckets an octave.
const nativeSchema = 3

// message is a protobuf message being written; inner ones are written beside it, since their length comes first.
type message struct {
	b []byte
}

func (m *message) text(field protowire.Number, s string) {
	m.b = protowire.AppendString(protowire.AppendTag(m.b, field, protowire.BytesType), s)
}

func (m *message) uint(field protowire.Number, v uint64) {
	m.b = protowire.AppendVarint(protowire.AppendTag(m.b, field, protowire.VarintType), v)
}

func (m *message) sint(field protowire.Number, v int64) { m.uint(field, protowire.EncodeZigZag(v)) }

func (m *message) double(field protowire.Number, v float64) {
	m.b = protowire.AppendFixed64(protowire.AppendTag(m.b, field, protowire.Fixed64Type), math.Float64bits(v))
}

func (m *message) inner(field protowire.Number, inner *message) {
	m.b = protowire.AppendBytes(protowire.AppendTag(m.b, field, protowire.BytesType), inner.b)
}

func (m *message) labels(labels []region.Label) {
	for _, l := range labels {
		var pair message
		pair.text(pairName, l.Name)
		pair.text(pairValue, l.Value)
		m.inner(metricLabel, &pair)
	}
}

func (s *Source) writeProtobuf(w io.Writer, match []string, own []Own) error {
	out := bufio.NewWriterSize(w, 32<<10)
	var open message // the family that is being written
	flush := func() error {
		if len(open.b) == 0 {
			return nil
		}
		if _, err := out.Write(binary.AppendUvarint(nil, uint64(len(open.b)))); err != nil {
			return err
		}
		_, err := out.Write(open.b)
		open.b = open.b[:0]
		return err
	}
	var head *family
	var metric, value message
	err := s.walk(match, func(fam *family, g *group, v *variant, cells []uint64) error {
		if fam != head {
			if err := flush(); err != nil {
				return err
			}
			open.head(fam.name, fam.help, fam.kind)
			head = fam
		}
		metric.b, value.b = metric.b[:0], value.b[:0]
		metric.labels(g.labels)
		metric.labels(v.labels)
		scale := Scale(fam.unit, fam.exposed)
		switch fam.kind {
		case region.Histogram:
			value.histogram(fam.unit, cells, scale)
			metric.inner(metricHistogram, &value)
		case region.Gauge:
			value.double(simpleValue, float64(int64(cells[0]))/scale)
			metric.inner(metricGauge, &value)
		default:
			value.double(simpleValue, float64(cells[0])/scale)
			metric.inner(metricCounter, &value)
		}
		open.inner(familyMetric, &metric)
		return nil
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
			if err := flush(); err != nil {
				return err
			}
			open.head(o.Name, o.Help, o.Kind)
			last = o.Name
		}
		metric.b, value.b = metric.b[:0], value.b[:0]
		metric.labels(o.Labels)
		value.double(simpleValue, o.Value)
		metric.inner(map[region.Kind]protowire.Number{region.Counter: metricCounter, region.Gauge: metricGauge}[o.Kind], &value)
		open.inner(familyMetric, &metric)
	}
	if err := flush(); err != nil {
		return err
	}
	return out.Flush()
}

func (m *message) head(name, help string, kind region.Kind) {
	m.text(familyName, name)
	m.text(familyHelp, help)
	m.uint(familyType, map[region.Kind]uint64{region.Counter: typeCounter, region.Gauge: typeGauge, region.Histogram: typeHistogram}[kind])
}

// histogram writes the classic buckets and, where the exposed unit is a power of two of the stored one, the native ones,
// which are then exactly what was counted. Of a value that overflowed only the count is known: it is in the last classic
// bucket, and natively in the one after the last.
func (m *message) histogram(unit string, cells []uint64, scale float64) {
	m.uint(histogramCount, region.HistogramCount(cells))
	m.double(histogramSum, float64(cells[region.HistogramSum])/scale)
	var bucket message
	var below uint64
	cell := region.HistogramZero
	for _, power := range classicPowers(unit) {
		for last := region.HistogramFirst + power*region.BucketsPerOctave; cell <= last; cell++ {
			below += cells[cell]
		}
		bucket.b = bucket.b[:0]
		bucket.uint(bucketCount, below)
		bucket.double(bucketBound, math.Ldexp(1, power)/scale)
		m.inner(histogramBucket, &bucket)
	}
	fraction, exponent := math.Frexp(scale)
	if fraction != 0.5 {
		return
	}
	m.sint(histogramSchema, nativeSchema)
	m.double(histogramZeroThreshold, 0)
	m.uint(histogramZeroCount, cells[region.HistogramZero])
	shift := (exponent - 1) * region.BucketsPerOctave
	var deltas message
	var before int64
	next := 0 // the index behind the last bucket of the last span
	for at := region.HistogramFirst; at < region.HistogramCells; {
		if cells[at] == 0 {
			at++
			continue
		}
		first := at
		for ; at < region.HistogramCells && cells[at] != 0; at++ {
			deltas.b = protowire.AppendVarint(deltas.b, protowire.EncodeZigZag(int64(cells[at])-before))
			before = int64(cells[at])
		}
		index := first - region.HistogramFirst - shift // the bucket of (2^((i-1)/8), 2^(i/8)] is number i
		bucket.b = bucket.b[:0]
		bucket.sint(spanOffset, int64(index-next))
		bucket.uint(spanLength, uint64(at-first))
		m.inner(histogramPositiveSpan, &bucket)
		next = index + at - first
	}
	if next == 0 && before == 0 {
		// Without any bucket a span of none tells a native histogram from a classic one (metrics.proto says so).
		bucket.b = bucket.b[:0]
		bucket.sint(spanOffset, 0)
		bucket.uint(spanLength, 0)
		m.inner(histogramPositiveSpan, &bucket)
	}
	m.inner(histogramPositiveDelta, &deltas)
}
