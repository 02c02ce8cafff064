package plugin

import (
	"bytes"
	"encoding/binary"
	"testing"

	"retinue.dev/proxyd/internal/counters"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// TestFlood has a plugin send what nobody asked for. A worker reads so much of it and no more: then the connection is closed and counted, who waits gets
// the fail mode, and the next attempt to connect comes later each time, until a call is answered.
func TestFlood(t *testing.T) {
	head := func(n int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }
	strange := answer(&filterv1.Reply{Call: 99<<32 | 1})
	large := answer(&filterv1.Reply{Call: 99<<32 | 1, Body: make([]byte, maxBuffer/2)})
	opening := frame(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Opening{Opening: &filterv1.Opening{Protocol: 1}}})
	for _, test := range []struct {
		name  string
		piece []byte
		most  int // pieces that are taken
	}{
		{"answers to no call", strange, maxStrange},
		{"large answers to no call", large, 2},
		{"openings", opening, 1},
		{"empty frames", head(0), 0},
		{"a frame without an end", append(head(maxFrame), bytes.Repeat([]byte{1}, 64<<10)...), 17},
		{"a frame that is too large", append(head(maxFrame+1), bytes.Repeat([]byte{1}, 64<<10)...), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, heads)
			ch := r.use.gates[0].host.targets[0].channels[0]
			cells := ch.target.cells(0)
			pause := reconnectFirst
			for round := range 12 {
				x, peer := r.request(r.use, true), r.plugin()
				r.turn()
				taken := 0
				for ; ch.connected && taken <= 2*test.most+2; taken++ {
					peer.Send(test.piece)
					r.turn()
				}
				if ch.connected || taken > test.most+1 {
					t.Fatalf("round %d: after %d pieces the connection is open: %v", round, taken, ch.connected)
				}
				if x.status != 503 || x.Details != "plugin_p_unavailable" || cells[counters.PluginProtocolErrors] != uint64(round+1) {
					t.Fatalf("round %d: status %d, %s, %d violations counted", round, x.status, x.Details, cells[counters.PluginProtocolErrors])
				}
				if cap(ch.large) > 0 || ch.flying != 0 {
					t.Fatalf("round %d: %d bytes and %d calls are kept", round, cap(ch.large), ch.flying)
				}
				r.net.Advance(pause - 10e6)
				if r.turn(); ch.connected {
					t.Fatalf("round %d: connected again before %d ms", round, pause/1e6)
				}
				r.net.Advance(20e6)
				if r.turn(); !ch.connected {
					t.Fatalf("round %d: not connected again after %d ms", round, pause/1e6)
				}
				pause = min(2*pause, reconnectMost)
			}
			x := r.request(r.use, true)
			r.turn()
			r.plugin().Send(append(bytes.Clone(opening), answer(&filterv1.Reply{Call: r.events()[0].GetCall()})...))
			if r.turn(); x.arrived != 1 || ch.retry != reconnectFirst {
				t.Errorf("a good answer: %d heads arrived, next pause %d ms", x.arrived, ch.retry/1e6)
			}
		})
	}
}

// TestLateAnswersAreNoFlood: answers to calls that were given up are dropped, however many there are.
func TestLateAnswersAreNoFlood(t *testing.T) {
	r := newRig(t, heads)
	ch := r.use.gates[0].host.targets[0].channels[0]
	for range 2 * maxStrange {
		x := r.request(r.use, true)
		r.turn()
		events := r.events()
		x.OnReset(0, 0, "the client left")
		for _, e := range events {
			if e.GetCall() > 0 {
				r.plugin().Send(answer(&filterv1.Reply{Call: e.GetCall()}))
			}
		}
		r.turn()
	}
	if !ch.connected || ch.strange > 0 || len(r.service.Peers) != 1 {
		t.Errorf("connected: %v, %d strange answers, %d connections", ch.connected, ch.strange, len(r.service.Peers))
	}
}
