package timer

import (
	"math/rand/v2"
	"testing"
)

type recorder struct {
	fired map[*Timer]int64
	then  func(t *Timer, now int64)
}

func (r *recorder) OnTimer(t *Timer, now int64) {
	r.fired[t] = now
	if r.then != nil {
		r.then(t, now)
	}
}

// TestFiresInTime holds the wheel against the plain rule: not before the deadline, at the first Run a tick after it.
func TestFiresInTime(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 9))
	for round := range 50 {
		var w Wheel
		now := rng.Int64N(1 << 50)
		w.Init(now)
		r := &recorder{fired: map[*Timer]int64{}}
		deadlines := map[*Timer]int64{}
		for step := range 2000 {
			switch rng.IntN(4) {
			case 0, 1:
				timer := &Timer{Callback: r}
				deadlines[timer] = now + rng.Int64N(1<<rng.IntN(44))
				w.Set(timer, deadlines[timer])
			case 2: // move or stop one
				for timer := range deadlines {
					if rng.IntN(2) == 0 {
						w.Stop(timer)
						delete(deadlines, timer)
					} else {
						deadlines[timer] = now + rng.Int64N(1<<rng.IntN(40))
						w.Set(timer, deadlines[timer])
					}
					break
				}
			}
			if at, ok := w.Next(); ok {
				for _, due := range deadlines {
					if due+2*Tick < at && due > now {
						t.Fatalf("round %d step %d: Next says %d, but a timer is due at %d", round, step, at, due)
					}
				}
			} else if len(deadlines) != 0 {
				t.Fatalf("Next says that nothing is set, %d are", len(deadlines))
			}
			now += rng.Int64N(1 << rng.IntN(42))
			w.Run(now)
			for timer, at := range r.fired {
				if due, ok := deadlines[timer]; !ok {
					t.Fatalf("a stopped timer fired")
				} else if at < due {
					t.Fatalf("round %d step %d: fired at %d, %d ns before its deadline", round, step, at, due-at)
				}
				delete(deadlines, timer)
			}
			clear(r.fired)
			for timer, due := range deadlines {
				if due+2*Tick < now {
					t.Fatalf("round %d step %d: %v is %d ns late", round, step, timer, now-due)
				}
			}
			if w.Len() != len(deadlines) {
				t.Fatalf("the wheel counts %d timers, %d are set", w.Len(), len(deadlines))
			}
		}
	}
}

func TestCallbackMaySetAndStop(t *testing.T) {
	var w Wheel
	w.Init(0)
	r := &recorder{fired: map[*Timer]int64{}}
	again, victim := &Timer{Callback: r}, &Timer{Callback: r}
	count := 0
	r.then = func(timer *Timer, now int64) {
		if timer == again {
			count++
			w.Stop(victim)
			w.Set(again, now)
		}
	}
	w.Set(again, Tick)
	w.Set(victim, Tick) // the same slot, behind
	for now := Tick; now <= 10*Tick; now += Tick {
		w.Run(now)
	}
	if _, fired := r.fired[victim]; fired {
		t.Error("a timer stopped by a callback of its own turn fired")
	}
	if count < 9 || count > 10 {
		t.Errorf("a timer that sets itself again fired %d times in 10 ticks", count)
	}
}

func TestSetAndRunAllocateNothing(t *testing.T) {
	var w Wheel
	w.Init(0)
	r := &recorder{fired: map[*Timer]int64{}}
	timer := &Timer{Callback: r}
	r.fired[timer] = 0
	now := int64(0)
	if n := testing.AllocsPerRun(1000, func() {
		w.Set(timer, now)
		now += 3 * Tick
		w.Run(now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
