package region

import (
	"math"
	"math/bits"
)

// A histogram is a run of HistogramCells cells of a group. Its buckets are base-2 exponential, eight an octave, with
// upper-inclusive bounds 2^(i/8): exactly Prometheus' native schema 3 and OTLP's exponential scale 3, so that buckets
// of any two histograms add. Values are integers in the unit's base (ticks, bytes).
//
//	cell 0            sum of the values
//	cell 1            values equal to 0
//	cell 2+i          values in (2^((i-1)/8), 2^(i/8)], i = 0 … 288
//	cell 291          values above 2^36 (18 hours in ticks, 64 GiB in bytes)
//
// There is no cell for the count: it is the sum of the buckets, so no reader can see one without the other.
const (
	BucketsPerOctave = 8
	Octaves          = 36

	HistogramSum      = 0
	HistogramZero     = 1
	HistogramFirst    = 2
	HistogramOverflow = HistogramFirst + Octaves*BucketsPerOctave + 1
	HistogramCells    = HistogramOverflow + 1
)

// bounds holds floor(2^63 * 2^(k/8)): a value whose bits, shifted up to the top, exceed bounds[k] lies above 2^(k/8)
// in its octave. The bounds inside an octave are irrational, so no integer ever equals one. The last stands for 2,
// which no such value exceeds.
var bounds = [9]uint64{
	0x8000000000000000, 0x8b95c1e3ea8bd6e6, 0x9837f0518db8a96f, 0xa5fed6a9b15138ea, 0xb504f333f9de6484,
	0xc5672a115506dadd, 0xd744fccad69d6af4, 0xeac0c6e7dd24392e, math.MaxUint64,
}

// firstBound is, for each sixteenth of an octave, the only bound that can lie inside it: bounds are at least 0.09
// apart, a sixteenth is 0.0625 wide.
var firstBound = [16]uint8{0, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7, 8, 8}

// HistogramIndex returns the cell, within a histogram's cells, that counts v. It compares bits; there is no logarithm.
func HistogramIndex(v uint64) int {
	if v == 0 {
		return HistogramZero
	}
	shift := bits.LeadingZeros64(v)
	octave := 63 - shift
	if octave >= Octaves {
		if v == 1<<Octaves {
			return HistogramOverflow - 1
		}
		return HistogramOverflow
	}
	mantissa := v << shift
	k := int(firstBound[mantissa>>59&15])
	if mantissa > bounds[k] {
		k++
	}
	return HistogramFirst + octave*BucketsPerOctave + k
}

// Ticks converts nanoseconds to 1024ths of a millisecond (UnitTicks), to the nearest. Powers of two of them are powers
// of two of milliseconds, so that the buckets of times are exactly the native ones of what is exposed.
func Ticks(ns uint64) uint64 { return (ns*16 + 7812) / 15625 }

// UnitTicks is the unit of cells that Ticks fill.
const UnitTicks = "ms/1024"

// Observe counts v in one histogram's cells. It is called by the one writer of the sheet: two plain stores.
func Observe(cells []uint64, v uint64) {
	_ = cells[HistogramCells-1]
	cells[HistogramIndex(v)]++
	cells[HistogramSum] += v
}

// HistogramBound returns the upper, inclusive bound of a bucket's cell: 0 for HistogramZero, +Inf for HistogramOverflow.
func HistogramBound(cell int) float64 {
	switch {
	case cell <= HistogramZero:
		return 0
	case cell >= HistogramOverflow:
		return math.Inf(1)
	}
	i := cell - HistogramFirst
	fraction := i % BucketsPerOctave
	if fraction == 0 {
		return math.Ldexp(1, i/BucketsPerOctave)
	}
	return math.Ldexp(math.Exp2(float64(fraction)/BucketsPerOctave), i/BucketsPerOctave)
}

// HistogramCount returns how many values a histogram's cells hold.
func HistogramCount(cells []uint64) uint64 {
	var n uint64
	for _, c := range cells[HistogramZero:HistogramCells] {
		n += c
	}
	return n
}

// HistogramQuantile estimates the q-quantile (0 … 1) of a histogram's cells, interpolating geometrically inside the
// bucket, so that the error is below one bucket, 9 %. It is 0 for an empty histogram and the greatest finite
// bound for a value that overflowed.
func HistogramQuantile(cells []uint64, q float64) float64 {
	count := HistogramCount(cells)
	if count == 0 {
		return 0
	}
	rank := math.Min(math.Max(q, 0), 1) * float64(count)
	var below float64
	for cell := HistogramZero; cell < HistogramCells; cell++ {
		n := float64(cells[cell])
		if n == 0 || below+n < rank {
			below += n
			continue
		}
		switch cell {
		case HistogramZero:
			return 0
		case HistogramOverflow:
			return HistogramBound(HistogramOverflow - 1)
		}
		into := (rank - below) / n
		return HistogramBound(cell) * math.Exp2((into-1)/BucketsPerOctave)
	}
	return HistogramBound(HistogramOverflow - 1)
}
