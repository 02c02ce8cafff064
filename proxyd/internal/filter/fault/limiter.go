package fault

import (
	"time"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
)

const (
	// slice is how often bytes that are held are let go, and what a response begins with: Envoy's 50 ms.
	slice = int64(50 * time.Millisecond)
	// second is what may be saved up.
	second = int64(time.Second)
)

// limiter lets the body of one response go at a rate. What is too much waits here, within the stream's limit, above which the upstream
// waits; what waits goes by slices of time, each as large as the rate gives, while the client takes it.
type limiter struct {
	cb       *stream.Callbacks // nil: the response has no limit
	rate     int64             // bytes a second
	credit   int64             // bytes that may go, times a second's nanoseconds
	since    int64             // ns: credit is as of then
	backlog  buffer.Chain
	timer    timer.Timer
	armed    bool
	ended    bool // the body's end waits too
	trailers bool // and they come then
	paused   bool // the upstream
}

// limit begins with one slice.
func (l *limiter) limit(c *stream.Callbacks, kilobytes int64) {
	l.cb, l.rate = c, kilobytes<<10
	l.credit, l.since = 0, 0
	l.timer.Callback = l
}

// EncodeData implements stream.Filter.
func (i *injector) EncodeData(_ *stream.Callbacks, data []byte, end bool) ([]byte, stream.Status) {
	l := &i.limiter
	if l.cb == nil || l.backlog.Len() == 0 && len(data) == 0 {
		return data, stream.Continue
	}
	s := l.cb.Stream()
	l.ended = l.ended || end
	l.backlog.Append(&s.Worker.Pool, data)
	if !l.paused && l.backlog.Len() >= s.Config.BufferLimit/2 { // one reading more than this comes at the most
		l.paused = true
		s.PauseResponse()
	}
	if !l.armed {
		l.armed = true
		s.Worker.Timers.Set(&l.timer, s.Worker.Now())
	}
	return nil, stream.StopIteration
}

// EncodeTrailers implements stream.Filter.
func (i *injector) EncodeTrailers(*stream.Callbacks) stream.Status {
	if l := &i.limiter; l.cb != nil && l.backlog.Len() > 0 {
		l.trailers = true
		return stream.StopIteration
	}
	return stream.Continue
}

// OnTimer implements timer.Callback: a slice of time is over.
func (l *limiter) OnTimer(*timer.Timer, int64) {
	s := l.cb.Stream()
	w := s.Worker
	l.armed = false
	now := w.Now()
	if l.since == 0 {
		l.since = now - slice
	}
	l.credit = min(l.credit+min(now-l.since, second)*l.rate, second*l.rate)
	l.since = now
	if s.Downstream().BufferedBytes() < s.Config.BufferLimit && !l.let(s, l.credit/second) {
		return
	}
	if l.paused && l.backlog.Len() < s.Config.BufferLimit/4 {
		l.paused = false
		s.ResumeResponse()
	}
	if l.backlog.Len() > 0 && !l.armed {
		l.armed = true
		w.Timers.Set(&l.timer, now+slice)
	}
}

// let lets at most so many bytes go; false when the response, or the stream, has ended with them.
func (l *limiter) let(s *stream.Stream, most int64) bool {
	c := l.cb
	for most > 0 && l.backlog.Len() > 0 {
		piece := l.backlog.Front()
		piece = piece[:min(int64(len(piece)), most)]
		n := len(piece)
		most -= int64(n)
		l.credit -= int64(n) * second
		last := l.ended && n == l.backlog.Len()
		s.Touch()
		c.InjectEncodedData(piece, last)
		if last || l.cb != c { // the stream may be gone, and this memory another's
			return false
		}
		l.backlog.Consume(&s.Worker.Pool, n)
	}
	if l.trailers && l.backlog.Len() == 0 {
		l.trailers = false
		c.ContinueEncoding()
		return false
	}
	return true
}

// end gives everything back.
func (l *limiter) end(w *worker.Worker) {
	if l.cb == nil {
		return
	}
	w.Timers.Stop(&l.timer)
	l.backlog.Release(&w.Pool)
	*l = limiter{}
}
