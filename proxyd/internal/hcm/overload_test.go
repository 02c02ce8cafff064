package hcm

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/overload"
	configv1 "retinue.dev/services/api/config/v1"
)

// Nearly as many connections as there may be: responses end theirs, and go on keeping them when there is room again.
func TestNearTheConnectionLimit(t *testing.T) {
	s := newSim(t, defaults())
	others := uint64(96)
	s.listener.Global = &listener.Limit{Max: 100, Cells: []*uint64{&others}}
	client := s.client()
	ask := func() []byte {
		client.Send(plainRequest)
		s.turn()
		s.backlog.Last().Discard()
		s.backlog.Last().Send(plainResponse)
		s.turn()
		return client.ReceiveAll()
	}
	if got := ask(); !bytes.Contains(got, []byte("\r\nConnection: close\r\n")) || !client.SawFIN() {
		t.Errorf("answered %.200q, FIN %v", got, client.SawFIN())
	}
	if n := s.http[counters.HTTPDownstreamCxOverloadDisableKeepalive]; n != 1 {
		t.Errorf("counted %d", n)
	}
	others = 90
	client = s.client()
	if got := ask(); bytes.Contains(got, []byte("Connection: close")) || client.SawFIN() {
		t.Errorf("with room again: answered %.200q, FIN %v", got, client.SawFIN())
	}
}

// What is asked while the process defends itself is answered 503 at once, the connection ends, and nothing goes upstream.
func TestRequestsAreTurnedAway(t *testing.T) {
	s := newSim(t, defaults())
	s.filter.Shared.Overload[overload.StopRequests] = overload.Full
	client := s.client()
	client.Send([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"))
	s.turn()
	got := client.ReceiveAll()
	if !bytes.HasPrefix(got, []byte("HTTP/1.1 503 ")) || !bytes.Contains(got, []byte("X-Envoy-Overloaded: true\r\n")) || !bytes.HasSuffix(got, []byte("\r\n\r\nenvoy overloaded")) || !client.SawFIN() {
		t.Errorf("answered %.300q, FIN %v", got, client.SawFIN())
	}
	if line := s.last(); line.flags != "OM" || line.details != "overload" || line.status != 503 {
		t.Errorf("logged %+v", line)
	}
	if n := s.http[counters.HTTPDownstreamRqOverloadClose]; n != 1 || s.cluster[counters.ClusterUpstreamRqTotal] != 0 {
		t.Errorf("counted %d, %d upstream", n, s.cluster[counters.ClusterUpstreamRqTotal])
	}
	*s.filter.Shared.Overload = overload.Levels{}
	client = s.client()
	client.Send(plainRequest)
	s.turn()
	if s.backlog.Last().Discard() == 0 {
		t.Error("with room again no request goes upstream")
	}
}

// A level below all ends about so many connections.
func TestKeepaliveIsDisabledForSome(t *testing.T) {
	h := defaults()
	h.VirtualHosts[0].Routes[0].Action = &configv1.Route_Respond{Respond: &configv1.Respond{Status: 204}}
	s := newSim(t, h)
	s.filter.Shared.Overload[overload.DisableKeepalive] = overload.Full / 4
	ended := 0
	for range 400 {
		client := s.client()
		client.Send(plainRequest)
		s.turn()
		client.Discard()
		if client.SawFIN() {
			ended++
		}
	}
	if ended < 50 || ended > 150 || uint64(ended) != s.http[counters.HTTPDownstreamCxOverloadDisableKeepalive] {
		t.Errorf("%d of 400 connections ended at a quarter, %d counted", ended, s.http[counters.HTTPDownstreamCxOverloadDisableKeepalive])
	}
}

// Of the streams those that hold most go, as many as the level says, and small ones never.
func TestTheMostExpensiveAreReset(t *testing.T) {
	s := newSim(t, defaults())
	for i := range 4 {
		client := s.client()
		client.Send(plainRequest)
		s.turn()
		if i == 3 {
			break // holds nothing
		}
		client.SetRoom(1 << 10) // takes little of what follows
		body := make([]byte, (i+1)*100<<10)
		up := s.backlog.Last()
		up.Send(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(body), body))
		s.turn()
	}
	var victims Victims
	s.filter.Weigh(&victims)
	if victims.n != 3 || victims.list[0].bytes < victims.list[1].bytes || victims.list[1].bytes < victims.list[2].bytes {
		t.Fatalf("%d victims: %+v", victims.n, victims.list[:3])
	}
	if n := victims.Reset(overload.Full / maxVictims * 2); n != 2 {
		t.Errorf("%d were reset", n)
	}
	s.turn()
	if used := s.worker.Pool.Used(); used > 200<<10 {
		t.Errorf("%d bytes are held for clients that were reset", used)
	}
	if n := s.http[counters.HTTPDownstreamRqOverloadReset]; n != 2 || s.http[counters.HTTPDownstreamRqActive] != 2 {
		t.Errorf("%d counted, %d under way", n, s.http[counters.HTTPDownstreamRqActive])
	}
	if line := s.last(); line.flags != "OM" || line.details != "overload" {
		t.Errorf("logged %+v", line)
	}
}

// While time-outs are reduced, a connection that waits already ends sooner, and so does a request that stands still.
func TestTimeoutsAreReduced(t *testing.T) {
	h, off := defaults(), int64(0) // idle after an hour, still after five minutes
	h.VirtualHosts[0].Routes[0].GetRoute().TimeoutMs = &off
	s := newSim(t, h)
	waiting, still := s.client(), s.client()
	still.Send(plainRequest)
	s.turn()
	s.backlog.Last().Discard()
	pass := func(d time.Duration) {
		s.net.Advance(int64(d))
		s.turn()
	}
	pass(4 * time.Minute)
	if waiting.SawFIN() || still.Waiting() > 0 {
		t.Fatal("a time-out passed that is not due")
	}
	s.filter.Shared.Overload[overload.ReduceTimeouts] = overload.Full * 9 / 10 // 6 minutes, and 30 seconds
	s.filter.Rearm()
	pass(time.Second)
	if got := still.ReceiveAll(); !bytes.HasPrefix(got, []byte("HTTP/1.1 504 ")) {
		t.Errorf("the request that stands still is answered %.60q", got)
	}
	if line := s.last(); line.flags != "SI" || line.details != "stream_idle_timeout" {
		t.Errorf("logged %+v", line)
	}
	if waiting.SawFIN() {
		t.Error("the idle connection ended after four minutes")
	}
	pass(2 * time.Minute)
	if !waiting.SawFIN() || s.http[counters.HTTPDownstreamCxIdleTimeout] != 1 {
		t.Errorf("the idle connection is there after six minutes, %d counted", s.http[counters.HTTPDownstreamCxIdleTimeout])
	}
	late := s.client()
	*s.filter.Shared.Overload = overload.Levels{}
	pass(10 * time.Minute)
	if late.SawFIN() {
		t.Error("with room again a connection ended after ten minutes")
	}
}
