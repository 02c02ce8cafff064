package overload

import (
	"runtime"
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

func manager(t *testing.T, actions ...*configv1.OverloadAction) *Manager {
	t.Helper()
	m, err := New(&configv1.Overload{Actions: actions})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestSteps: an action begins at its threshold and ends only below where it lets go.
func TestSteps(t *testing.T) {
	m := manager(t, &configv1.OverloadAction{Kind: configv1.OverloadAction_KIND_STOP_ACCEPTING_REQUESTS, Memory: 950_000, Release: 50_000})
	for i, step := range []struct{ pressure, want uint32 }{
		{0, 0}, {949_999, 0}, {950_000, Full}, {920_000, Full}, {900_001, Full}, {900_000, 0}, {940_000, 0}, {2 * Full, Full}, {0, 0},
	} {
		if got := m.Turn([NumResources]uint32{Memory: step.pressure})[StopRequests]; got != step.want {
			t.Errorf("step %d: at %d the level is %d, not %d", i, step.pressure, got, step.want)
		}
	}
}

// TestScaled: an action grows from where it begins to its threshold.
func TestScaled(t *testing.T) {
	m := manager(t, &configv1.OverloadAction{Kind: configv1.OverloadAction_KIND_DISABLE_HTTP_KEEPALIVE, Connections: 900_000, Scaling: 100_000, Release: 50_000})
	for _, step := range []struct{ pressure, want uint32 }{
		{800_000, 0}, {825_000, Full / 4}, {850_000, Full / 2}, {900_000, Full}, {850_000, Full / 2}, {800_000, 0},
	} {
		if got := m.Turn([NumResources]uint32{Connections: step.pressure})[DisableKeepalive]; got != step.want {
			t.Errorf("at %d the level is %d, not %d", step.pressure, got, step.want)
		}
	}
}

// TestResourcesAreApart: each resource holds an action by itself, and the worst one says how far it goes.
func TestResourcesAreApart(t *testing.T) {
	m := manager(t, &configv1.OverloadAction{Kind: configv1.OverloadAction_KIND_RESET_HIGH_MEMORY_STREAM, Memory: 900_000, Descriptors: 800_000, Scaling: 100_000})
	levels := m.Turn([NumResources]uint32{Memory: 850_000, Descriptors: 720_000, Connections: Full})
	if levels != (Levels{ResetStreams: Full / 2}) || m.Cause(ResetStreams) != "memory" || m.Cause(StopRequests) != "" {
		t.Errorf("%v for %s", levels, m.Cause(ResetStreams))
	}
	if levels = m.Turn([NumResources]uint32{Descriptors: 800_000}); levels[ResetStreams] != Full || m.Cause(ResetStreams) != "descriptors" {
		t.Errorf("%v for %s", levels, m.Cause(ResetStreams))
	}
}

// TestReduceTimeouts: time-outs grow shorter until the least share of them is left.
func TestReduceTimeouts(t *testing.T) {
	m := manager(t, &configv1.OverloadAction{Kind: configv1.OverloadAction_KIND_REDUCE_TIMEOUTS, Memory: 900_000, Scaling: 100_000, MinScale: 200_000})
	for _, step := range []struct {
		pressure uint32
		want     int64
	}{{0, 1000}, {800_000, 1000}, {850_000, 600}, {900_000, 200}, {Full, 200}, {800_000, 1000}} {
		levels := m.Turn([NumResources]uint32{Memory: step.pressure})
		if got := levels.Shorten(1000); got != step.want {
			t.Errorf("at %d a time-out of 1000 is %d, not %d", step.pressure, got, step.want)
		}
	}
	all := Levels{ReduceTimeouts: Full}
	if got := all.Shorten(1 << 62); got != 0 {
		t.Errorf("nothing is to be left, and %d is", got)
	}
}

// TestInherit: a change of configuration does not let go what is held by hysteresis.
func TestInherit(t *testing.T) {
	object := &configv1.OverloadAction{Kind: configv1.OverloadAction_KIND_STOP_ACCEPTING_REQUESTS, Memory: 950_000, Release: 50_000}
	old := manager(t, object)
	old.Turn([NumResources]uint32{Memory: 960_000})
	next := manager(t, object)
	next.Inherit(old)
	if next.Turn([NumResources]uint32{Memory: 920_000})[StopRequests] != Full {
		t.Error("the action ended with the configuration")
	}
}

func TestNothingConfigured(t *testing.T) {
	m, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Turn([NumResources]uint32{2 * Full, 2 * Full, 2 * Full}); got != (Levels{}) {
		t.Errorf("%v", got)
	}
	if _, err := New(&configv1.Overload{Actions: []*configv1.OverloadAction{{Kind: 99}}}); err == nil {
		t.Error("an unknown action was taken")
	}
}

func TestDraw(t *testing.T) {
	l := &Levels{DisableKeepalive: Full / 4, StopRequests: Full}
	n := 0
	for i := range uint64(1000) {
		if l.Draw(DisableKeepalive, i*1009) {
			n++
		}
		if !l.Draw(StopRequests, i) || l.Draw(ResetStreams, i) {
			t.Fatal("all or nothing is drawn")
		}
	}
	if n < 200 || n > 300 {
		t.Errorf("%d of 1000 at a quarter", n)
	}
}

func TestPressure(t *testing.T) {
	for _, test := range []struct {
		used, limit uint64
		want        uint32
	}{{5, 0, 0}, {0, 10, 0}, {5, 10, Full / 2}, {10, 10, Full}, {1 << 60, 1, 2 * Full}} {
		if got := Pressure(test.used, test.limit); got != test.want {
			t.Errorf("%d of %d is %d", test.used, test.limit, got)
		}
	}
}

var kept [][]byte

// TestMeter holds that memory in use is seen, garbage is not, and that descriptors are counted.
func TestMeter(t *testing.T) {
	m := NewMeter()
	before := m.Memory()
	if before == 0 || before > 1<<30 {
		t.Errorf("the process needs %d bytes", before)
	}
	for range 64 {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	collect()
	if now := m.Memory(); now < before+60<<20 {
		t.Errorf("64 MiB more in use: %d bytes before, %d now", before, now)
	}
	kept = nil
	collect()
	if now := m.Memory(); now > before+40<<20 && !raced {
		t.Errorf("nothing is in use any more: %d bytes before, %d now", before, now)
	}
	if n := m.Descriptors(); n < 3 || n > 1000 {
		t.Errorf("%d descriptors", n)
	}
}

func collect() { runtime.GC() }
