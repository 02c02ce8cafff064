package region

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// oracle finds the bucket by comparing v^8 with 2^i in exact integers: v <= 2^(i/8) is v^8 <= 2^i.
func oracle(v uint64) int {
	if v == 0 {
		return HistogramZero
	}
	eighth := new(big.Int).Exp(new(big.Int).SetUint64(v), big.NewInt(8), nil)
	i := eighth.BitLen()
	if new(big.Int).Lsh(big.NewInt(1), uint(i-1)).Cmp(eighth) == 0 {
		i--
	}
	if i > Octaves*BucketsPerOctave {
		return HistogramOverflow
	}
	return HistogramFirst + i
}

func TestHistogramIndexAgainstExactIntegers(t *testing.T) {
	check := func(v uint64) {
		t.Helper()
		if got, want := HistogramIndex(v), oracle(v); got != want {
			t.Fatalf("HistogramIndex(%d) = %d, want %d", v, got, want)
		}
	}
	for v := range uint64(1 << 16) {
		check(v)
	}
	for i := range Octaves*BucketsPerOctave + 9 {
		edge := uint64(math.Pow(2, float64(i)/8))
		for d := range uint64(5) {
			check(edge + d)
			if edge >= d {
				check(edge - d)
			}
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		check(random.Uint64() >> random.UintN(64))
	}
	check(math.MaxUint64)
	check(1 << 63)
}

func TestHistogramBoundAgainstPow(t *testing.T) {
	for i := range Octaves*BucketsPerOctave + 1 {
		got, want := HistogramBound(HistogramFirst+i), math.Pow(2, float64(i)/8)
		if math.Abs(got-want)/want > 1e-15 {
			t.Errorf("bound of bucket %d is %v, want %v", i, got, want)
		}
		if v := uint64(got); v > 0 && HistogramIndex(v) > HistogramFirst+i {
			t.Errorf("%d lies above the bucket whose bound is %v", v, got)
		}
	}
	if HistogramCells != 292 {
		t.Errorf("HistogramCells is %d: the layout says 292", HistogramCells)
	}
}

func TestHistogramsMergeByAdding(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	one, two, both := make([]uint64, HistogramCells), make([]uint64, HistogramCells), make([]uint64, HistogramCells)
	var sum, count uint64
	for i := range 10_000 {
		v := random.Uint64() >> (28 + random.UintN(36))
		half := one
		if i%3 == 0 {
			half = two
		}
		Observe(half, v)
		Observe(both, v)
		sum, count = sum+v, count+1
	}
	for i := range both {
		if one[i]+two[i] != both[i] {
			t.Fatalf("cell %d: %d + %d is not %d", i, one[i], two[i], both[i])
		}
	}
	if both[HistogramSum] != sum || HistogramCount(both) != count {
		t.Errorf("sum %d count %d, want %d and %d", both[HistogramSum], HistogramCount(both), sum, count)
	}
}

func TestHistogramQuantile(t *testing.T) {
	cells := make([]uint64, HistogramCells)
	if got := HistogramQuantile(cells, 0.5); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
	for v := uint64(1); v <= 10_000; v++ {
		Observe(cells, v)
	}
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		got, want := HistogramQuantile(cells, q), q*10_000
		if math.Abs(got-want)/want > 0.0906 {
			t.Errorf("quantile %v is %v, want %v within a bucket", q, got, want)
		}
	}
	overflow := make([]uint64, HistogramCells)
	Observe(overflow, math.MaxUint64)
	Observe(overflow, 0)
	if got := HistogramQuantile(overflow, 0.99); got != 1<<Octaves {
		t.Errorf("quantile of an overflow is %v", got)
	}
	if got := HistogramQuantile(overflow, 0.1); got != 0 {
		t.Errorf("quantile of a zero is %v", got)
	}
}

func BenchmarkObserve(b *testing.B) {
	cells := make([]uint64, HistogramCells)
	v := uint64(1)
	for b.Loop() {
		Observe(cells, v&0xfffff)
		v = v*6364136223846793005 + 1442695040888963407
	}
}
