package buffer

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestChainIsAQueue compares a chain with a plain byte slice over random appends and consumes.
func TestChainIsAQueue(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var pool Pool
	var chain Chain
	var want []byte
	for range 5000 {
		if rng.IntN(2) == 0 {
			add := make([]byte, rng.IntN(40000))
			for i := range add {
				add[i] = byte(rng.Uint32())
			}
			chain.Append(&pool, add)
			want = append(want, add...)
		} else if len(want) > 0 {
			n := rng.IntN(len(want) + 1)
			chain.Consume(&pool, n)
			want = want[n:]
		}
		if chain.Len() != len(want) {
			t.Fatalf("Len %d, want %d", chain.Len(), len(want))
		}
		got := make([]byte, len(want))
		if n := chain.CopyTo(got); n != len(want) || !bytes.Equal(got, want) {
			t.Fatalf("the chain holds other bytes than were appended")
		}
		if joined := bytes.Join(chain.Pieces(nil, 1<<30), nil); !bytes.Equal(joined, want) {
			t.Fatalf("Pieces differ from the bytes")
		}
		var walked []byte
		for len(walked) < len(want) {
			walked = append(walked, chain.From(len(walked))...)
		}
		if !bytes.Equal(walked, want) || chain.From(len(want)) != nil {
			t.Fatalf("From differs from the bytes")
		}
		if !bytes.HasPrefix(want, chain.Front()) {
			t.Fatalf("Front is not the beginning")
		}
	}
	chain.Release(&pool)
	if pool.Used() != 0 {
		t.Errorf("%d bytes are lost after Release", pool.Used())
	}
	pool.Trim()
	if pool.Mapped() != slabSize {
		t.Errorf("Trim left %d bytes mapped, want one slab", pool.Mapped())
	}
}

func TestEmptyChainOwnsNothing(t *testing.T) {
	var pool Pool
	var chain Chain
	chain.Append(&pool, make([]byte, 3*BlockSize))
	chain.Consume(&pool, 3*BlockSize)
	if pool.Used() != 0 || chain.Front() != nil {
		t.Errorf("an empty chain holds %d bytes of blocks", pool.Used())
	}
	chain.Append(&pool, []byte("x"))
	chain.Consume(&pool, 1)
	if pool.Used() != 0 {
		t.Errorf("an empty chain holds a part-filled block")
	}
}

func TestAppendAndConsumeAllocateNothing(t *testing.T) {
	var pool Pool
	var chain Chain
	piece := make([]byte, 5000)
	chain.Append(&pool, piece)
	chain.Consume(&pool, len(piece))
	if n := testing.AllocsPerRun(1000, func() {
		chain.Append(&pool, piece)
		chain.Consume(&pool, len(piece))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
