package accesslog

import (
	"strings"

	"retinue.dev/proxyd/internal/stream"
)

// span is what a COMMON_DURATION measures.
type span struct {
	from, to func(*stream.Stream) int64
	unit     int64 // ns
}

// points are the moments of a stream by Envoy's names, in ns of the worker's clock; 0 for what did not happen.
var points = map[string]func(*stream.Stream) int64{
	"DS_RX_BEG": func(s *stream.Stream) int64 { return s.Start },
	"DS_RX_END": func(s *stream.Stream) int64 { return s.RequestReceived },
	"US_TX_BEG": func(s *stream.Stream) int64 { return s.UpstreamReady },
	"US_TX_END": func(s *stream.Stream) int64 { return s.UpstreamSent },
	"US_RX_BEG": func(s *stream.Stream) int64 { return s.UpstreamReceived },
	"US_RX_END": func(s *stream.Stream) int64 { return s.UpstreamEnded },
	"DS_TX_BEG": func(s *stream.Stream) int64 { return s.ResponseStarted },
	"DS_TX_END": func(s *stream.Stream) int64 { return s.End },
}

var units = map[string]int64{"ms": 1e6, "us": 1e3, "ns": 1}

// spanOf reads an argument that logformat has taken.
func spanOf(argument string) span {
	from, rest, _ := strings.Cut(argument, ":")
	to, unit, _ := strings.Cut(rest, ":")
	return span{points[from], points[to], units[unit]}
}

// of is the time in its unit, -1 when one of its ends did not happen or they came the other way round.
func (p *span) of(s *stream.Stream) int64 {
	from, to := p.from(s), p.to(s)
	if from == 0 || to == 0 || to < from {
		return -1
	}
	return (to - from) / p.unit
}
