package control

import "testing"

func TestThrift(t *testing.T) {
	var memory thrift
	for _, step := range []struct {
		what                          string
		turns, allocated, connections uint64
		want                          bool
	}{
		{"the start was busy", 10_000, 40 << 20, 10, false},
		{"idle since", 10_010, 40 << 20, 10, true},
		{"idle, nothing new", 10_020, 40<<20 + 1000, 10, false},
		{"busy again", 90_000, 80 << 20, 10, false},
		{"busy still", 170_000, 90 << 20, 10, false},
		{"idle again", 170_100, 90 << 20, 10, true},
		{"a trickle", 170_200, 90<<20 + 500_000, 10, false},
		{"many came", 190_000, 90<<20 + 700_000, 9000, false},
		{"and stay", 190_100, 90<<20 + 700_000, 9000, false},
		{"they went", 190_200, 90<<20 + 700_000, 10, true},
		{"it adds up", 190_300, 92 << 20, 10, true},
	} {
		if got := memory.due(step.turns, step.allocated, step.connections); got != step.want {
			t.Errorf("%s: %v, want %v", step.what, got, step.want)
		}
	}
}
