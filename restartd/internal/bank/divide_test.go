package bank

import (
	"net"
	"testing"
	"time"
)

// dialled makes n connections to address and tells how many each socket got.
func dialled(t *testing.T, address string, n int, sockets []Socket) []int {
	t.Helper()
	for range n {
		c, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	return queued(t, sockets)
}

func sum(counts []int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// TestDivision: the second half gets nothing, then its share, then as much as the first.
func TestDivision(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 2, web("127.0.0.1:0", "unix:"+t.TempDir()+"/socket"))
	bound := b.Listeners()[0].Addresses[0]
	if err := b.Divide(); err != nil {
		t.Fatal(err)
	}
	var sockets []Socket
	for _, s := range b.sockets(t) {
		if s.Shared {
			if s.SecondHalf {
				t.Error("a unix socket is in the second half")
			}
			continue
		}
		if s.SecondHalf != (s.Shard >= 2) {
			t.Errorf("shard %d of %d: second half %t", s.Shard, s.Shards, s.SecondHalf)
		}
		sockets = append(sockets, s)
	}
	if len(sockets) != 4 {
		t.Fatalf("%d shards of an address with two workers, want 4", len(sockets))
	}
	if got := dialled(t, bound, 64, sockets); got[0] == 0 || got[1] == 0 || got[2]+got[3] > 0 {
		t.Errorf("before Share the shards got %v of 64", got)
	}
	for _, percent := range []int{1, 25, 75, 99} {
		b.Share(percent)
		const n = 400 // 8 standard deviations of 25 % are 17 %
		got := dialled(t, bound, n, sockets)
		share := float64(sum(got[2:])) / n
		if want := float64(percent) / 100; sum(got) != n || share < want-.17 || share > want+.17 {
			t.Errorf("with %d %% the shards got %v of %d", percent, got, n)
		}
		if percent == 25 && (got[2] == 0 || got[3] == 0 || got[0] == 0 || got[1] == 0) {
			t.Errorf("with 25 %% a shard got nothing: %v", got)
		}
	}
	b.Share(0)
	if got := dialled(t, bound, 64, sockets); sum(got[2:]) > 0 {
		t.Errorf("with none the shards got %v of 64", got)
	}
	b.Open()
	if got := dialled(t, bound, 128, sockets); got[0] == 0 || got[1] == 0 || got[2] == 0 || got[3] == 0 {
		t.Errorf("after Open the shards got %v of 128", got)
	}
	for _, s := range b.sockets(t) {
		if s.SecondHalf {
			t.Errorf("after Open shard %d is in a second half", s.Shard)
		}
	}
	if err := b.Divide(); err != nil {
		t.Fatal(err)
	}
	if n := b.Listeners()[0].Shards; n != 4 {
		t.Errorf("a second division has %d shards, want the 4 of the first", n)
	}
}

// TestDivisionOutlivesRestartd: the program is the kernel's, and the next restartd knows whose shards are whose, adds what a snapshot
// names meanwhile, and ends it.
func TestDivisionOutlivesRestartd(t *testing.T) {
	s := newShelf(t)
	first := newBench(t, s)
	first.apply(t, 2, web("127.0.0.1:0"))
	bound := first.Listeners()[0].Addresses[0]
	if err := first.Divide(); err != nil {
		t.Fatal(err)
	}
	first.Share(50)
	second := newBench(t, s)
	second.Adopt(s.inherit())
	second.Share(1)
	second.apply(t, 2, web("127.0.0.1:0"), Listener{Name: "new", Addresses: []Address{{Address: "127.0.0.2:0"}}})
	all := second.sockets(t)
	if len(all) != 8 {
		t.Fatalf("%d sockets, want four for each of two addresses", len(all))
	}
	for _, s := range all {
		if s.SecondHalf != (s.Shard >= 2) {
			t.Errorf("%s shard %d: second half %t", s.Listener, s.Shard, s.SecondHalf)
		}
	}
	for _, at := range []struct {
		address string
		sockets []Socket
	}{{bound, all[:4]}, {all[4].Bound, all[4:]}} {
		if got := dialled(t, at.address, 200, at.sockets); sum(got[2:]) > 40 {
			t.Errorf("of a hundredth the shards got %v of 200", got)
		}
	}
	second.Open()
	if got := dialled(t, bound, 128, all[:4]); got[2] == 0 || got[3] == 0 {
		t.Errorf("after Open the shards got %v of 128", got)
	}
}

// TestSteeringOfAnAdoptedGroupEnds: a restartd that was killed beside shards that nobody knew leaves them to the next.
func TestSteeringOfAnAdoptedGroupEnds(t *testing.T) {
	s := newShelf(t)
	first := newBench(t, s)
	first.apply(t, 1, web("127.0.0.1:0"))
	first.apply(t, 2, web("127.0.0.1:0"))
	first.Widen()
	second := newBench(t, s)
	second.Adopt(s.inherit())
	second.Open() // its probation ended while it was away: before any snapshot
	second.apply(t, 2, web("127.0.0.1:0"))
	sockets := second.sockets(t)
	if got := dialled(t, sockets[0].Bound, 64, sockets); got[1] == 0 {
		t.Errorf("the new shard gets nothing: %v", got)
	}
}
