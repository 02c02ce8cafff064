package control

import (
	"time"

	"retinue.dev/proxyd/internal/upstream"
)

// judging is how often the gauges of circuit breakers are written.
const judging = time.Second

// breakers keeps the gauges of circuit breakers. It belongs to the goroutine that keeps house.
type breakers struct {
	next   time.Time
	judged []*upstream.Config // by handle, the last time
}

func (b *breakers) judge(now time.Time, clusters []*upstream.Config) {
	if now.Before(b.next) {
		return
	}
	b.next = now.Add(judging)
	for handle, was := range b.judged {
		var c *upstream.Config
		if handle < len(clusters) {
			c = clusters[handle]
		}
		if was != nil && (c == nil || c.Main != was.Main || c.Left != was.Left) {
			was.Forget()
		}
	}
	for _, c := range clusters {
		if c != nil {
			c.Judge()
		}
	}
	b.judged = clusters
}
