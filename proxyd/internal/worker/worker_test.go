package worker_test

import (
	"testing"

	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/worker"
)

// TestExpected: a loop that expects an answer looks for it a few times before it sleeps, more and more seldom when that comes to nothing, and
// never where it expects none or would not sleep.
func TestExpected(t *testing.T) {
	net := simulated.New()
	w, err := worker.New(0, net)
	if err != nil {
		t.Fatal(err)
	}
	waits := func(most int64) int {
		before := net.Calls["wait"]
		w.Turn(most)
		return net.Calls["wait"] - before
	}
	const second = int64(1e9)
	if n := waits(second); n != 1 {
		t.Errorf("%d waits in a turn that expects nothing, want 1", n)
	}
	w.Expected = 1
	if n := waits(0); n != 1 {
		t.Errorf("%d waits in a turn that does not sleep, want 1", n)
	}
	for sleeps := 1; sleeps <= 127; sleeps = 2*sleeps + 1 {
		if n := waits(second); n < 10 {
			t.Fatalf("%d waits in a turn that expects an answer, want some looks before the sleep", n)
		}
		for i := range min(sleeps, 63) {
			if n := waits(second); n != 1 {
				t.Fatalf("%d waits in turn %d of %d after looking came to nothing, want 1", n, i, sleeps)
			}
		}
	}
	ran := false
	w.Post(func() { ran = true })
	if n := waits(second); n != 1 || !ran {
		t.Errorf("%d waits with a task posted, which ran: %v; want 1, true", n, ran)
	}
	if n := waits(second); n < 10 {
		t.Errorf("%d waits after a look that found something, want looks again", n)
	}
}
