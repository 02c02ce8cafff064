package plugin

import (
	"sync/atomic"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/worker"
)

// Generation is one generation of a plugin as workers know it. It never changes: what changes is which set of them a target has.
type Generation struct {
	Number      uint64
	configID    uint32
	config      string // hash of the configuration object
	address     *poller.Address
	sub         *subscription
	timeout     int64 // ns
	maxInFlight int
	open        []atomic.Bool // by worker: its channel is open
}

// share is a generation's part in new streams.
type share struct {
	generation *Generation
	canary     uint32 // per cent; 0: all that canaries leave
}

// Host is a worker's side of all plugins. It belongs to the worker's thread.
type Host struct {
	worker     *worker.Worker
	generation uint64 // of proxyd
	targets    []*target
	registry   *Registry

	frame []byte // scratch of an event
	text  []byte // scratch of values
	reply reply
	key   []byte            // scratch of a cache's key
	words map[string]string // details that plugins have given, so that each is made once
	large []byte            // a body in one piece
	spare *filter
	kept  int
	dead  *filter
	task  worker.Task
	last  uint64 // number of the newest stream
}

// target is one plugin in one worker.
type target struct {
	host     *Host
	counters []*counters.Plugin // by worker
	channels []*channel         // those that take streams first
	shares   []share
}

func (t *target) cells(worker int) *counters.Plugin { return t.counters[worker] }

// clock is the time now: within a turn answers come later than the turn began.
func (h *Host) clock() int64 { return h.worker.Poller.Now() }

// attached and detached tell the registry about a channel.
func (h *Host) attached(ch *channel) {
	ch.info.open[h.worker.ID].Store(true)
	h.registry.attached()
}

func (h *Host) detached(ch *channel) { ch.info.open[h.worker.ID].Store(false) }

// update gives a plugin its generations; shares are for new streams, the rest drains.
func (h *Host) update(handle int, cells []*counters.Plugin, shares []share) {
	for len(h.targets) <= handle {
		h.targets = append(h.targets, nil)
	}
	t := h.targets[handle]
	if t == nil {
		t = &target{host: h, counters: cells}
		h.targets[handle] = t
	}
	t.shares = shares
	for i := range shares {
		if t.channel(shares[i].generation) == nil {
			t.channels = append(t.channels, newChannel(h, t, shares[i].generation))
		}
	}
	t.settle()
}

// settle drains what takes no new streams any more, once what takes them instead is connected: until then the old one serves on.
func (t *target) settle() {
	for i := range t.shares {
		if ch := t.channel(t.shares[i].generation); ch == nil || !ch.connected {
			return
		}
	}
	for _, ch := range append([]*channel(nil), t.channels...) {
		wanted := false
		for i := range t.shares {
			wanted = wanted || t.shares[i].generation.Number == ch.info.Number
		}
		if !wanted {
			ch.drain()
		}
	}
}

func (t *target) channel(g *Generation) *channel {
	for _, ch := range t.channels {
		if ch.info.Number == g.Number && !ch.draining {
			return ch
		}
	}
	return nil
}

func (t *target) forget(ch *channel) {
	for i, c := range t.channels {
		if c == ch {
			t.channels = append(t.channels[:i], t.channels[i+1:]...)
			return
		}
	}
}

// maxWords bounds the details that are remembered: a plugin that makes up new ones is logged without.
const maxWords = 256

// detail is RESPONSE_CODE_DETAILS of a plugin's answer with a word of its own: plugin_NAME_WORD, for a word that is a token.
func (h *Host) detail(u *Use, word []byte) string {
	if !header.ValidName(word) {
		return u.respondDetail
	}
	h.text = append(append(append(append(h.text[:0], "plugin_"...), u.name...), '_'), word...)
	if text, known := h.words[string(h.text)]; known {
		return text
	}
	if len(h.words) >= maxWords {
		return u.respondDetail
	}
	text := string(h.text)
	h.words[text] = text
	return text
}

// pick chooses the channel of a new stream with a configuration; nil when there is none.
func (h *Host) pick(handle int, config string) *channel {
	if handle >= len(h.targets) || h.targets[handle] == nil {
		return nil
	}
	t := h.targets[handle]
	for i := range t.shares {
		if s := &t.shares[i]; s.canary > 0 && s.generation.config == config {
			if ch := t.channel(s.generation); ch != nil && ch.connected && uint32(h.worker.Rand()%100) < s.canary {
				return ch
			}
		}
	}
	var best *channel
	for _, ch := range t.channels {
		if ch.connected && !ch.draining && ch.info.config == config && (best == nil || ch.info.Number > best.info.Number) && !t.canary(ch) {
			best = ch
		}
	}
	return best
}

func (t *target) canary(ch *channel) bool {
	for i := range t.shares {
		if s := &t.shares[i]; s.generation.Number == ch.info.Number {
			return s.canary > 0
		}
	}
	return false
}
