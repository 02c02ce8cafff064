package bank

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// queued takes what waits in each shard and answers how many there were.
func queued(t *testing.T, sockets []Socket) []int {
	t.Helper()
	counts := make([]int, len(sockets))
	for i, s := range sockets {
		for {
			fd, _, err := unix.Accept4(s.FD, unix.SOCK_CLOEXEC)
			if err != nil {
				break
			}
			unix.Close(fd)
			counts[i]++
		}
	}
	return counts
}

// TestNewShardsAreSteeredToWhenOpened: a generation that accepts does not know shards that were added beside it.
func TestNewShardsAreSteeredToWhenOpened(t *testing.T) {
	b := newBench(t, newShelf(t))
	b.apply(t, 2, web("127.0.0.1:0"))
	bound := b.Listeners()[0].Addresses[0]
	b.apply(t, 4, web("127.0.0.1:0"))
	b.Widen()
	sockets := b.sockets(t)
	if len(sockets) != 4 {
		t.Fatalf("%d shards, want 4", len(sockets))
	}
	dial := func(n int) []int {
		for range n {
			c, err := net.DialTimeout("tcp", bound, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		return queued(t, sockets)
	}
	if got := dial(64); got[0] == 0 || got[1] == 0 || got[2]+got[3] > 0 {
		t.Errorf("before Open the shards got %v of 64 connections, want them in the first two", got)
	}
	b.Open()
	if got := dial(64); got[0] == 0 || got[1] == 0 || got[2] == 0 || got[3] == 0 {
		t.Errorf("after Open the shards got %v of 64 connections, want some in each", got)
	}
}
