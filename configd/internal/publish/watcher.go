package publish

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
)

// maxWatchers bounds the streams at a time: three daemons, at most four generations, and some that are just leaving.
const maxWatchers = 64

// watcher is one daemon's stream. It lives as long as the stream; Join makes it and removes it. have is touched only
// by who holds the publisher's turn; applied, state and message are under the publisher's lock.
type watcher struct {
	role       configv1.Role
	generation uint64
	pid        int64
	have       map[string]bool

	publisher               *Publisher
	applied, state, message string

	out     chan *configv1.WatchResponse
	answers chan *configv1.WatchRequest
	wake    chan struct{}
	done    chan struct{}
	once    sync.Once
	silent  atomic.Bool
	secrets *configv1.Secrets // delivered last; guarded by the publisher's turn
}

func (w *watcher) title() string {
	name := strings.ToLower(strings.TrimPrefix(w.role.String(), "ROLE_"))
	if w.role == configv1.Role_ROLE_PROXYD && w.generation > 0 {
		return fmt.Sprintf("%s (generation %d)", name, w.generation)
	}
	return name
}

func (w *watcher) appliedID() string {
	w.publisher.mu.Lock()
	defer w.publisher.mu.Unlock()
	return w.applied
}

func (w *watcher) close() { w.once.Do(func() { close(w.done) }) }

func (w *watcher) closed() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// send queues a message for the stream; false when the stream has ended.
func (w *watcher) send(m *configv1.WatchResponse) bool {
	select {
	case <-w.done:
		return false
	case w.out <- m:
		return true
	}
}

// drain forgets answers to earlier questions.
func (w *watcher) drain() {
	for {
		select {
		case <-w.answers:
		default:
			return
		}
	}
}

func (w *watcher) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// await waits for the answer that fits; others are about snapshots that are no longer asked for.
func (w *watcher) await(late <-chan time.Time, fits func(*configv1.WatchRequest) bool) (*configv1.WatchRequest, outcomeKind) {
	for {
		select {
		case m := <-w.answers:
			if fits(m) {
				return m, answered
			}
		case <-w.done:
			return nil, gone
		case <-late:
			return nil, silent
		}
	}
}

// Stream is the part of configv1.Config_WatchServer that Join needs.
type Stream interface {
	Context() context.Context
	Send(*configv1.WatchResponse) error
	Recv() (*configv1.WatchRequest, error)
}

// Join serves one watcher after its Subscribe and the Hello to it, until its stream ends. It brings the watcher to the
// snapshot in force first, and tries again while the watcher refuses that.
func (p *Publisher) Join(stream Stream, sub *configv1.Subscribe, pid int64) error {
	switch sub.GetRole() {
	case configv1.Role_ROLE_PROXYD, configv1.Role_ROLE_STATSD, configv1.Role_ROLE_RESTARTD:
	default:
		return status.Errorf(codes.InvalidArgument, "subscribe: role %v is not one that configd serves", sub.GetRole())
	}
	w := &watcher{
		role: sub.GetRole(), generation: sub.GetGeneration(), pid: pid, applied: sub.GetAppliedSnapshot(), state: "applied",
		have: make(map[string]bool, len(sub.GetHave())), publisher: p,
		out: make(chan *configv1.WatchResponse, 4), answers: make(chan *configv1.WatchRequest, 16),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	for _, h := range sub.GetHave() {
		w.have[string(h)] = true
	}
	if !p.add(w) {
		return status.Errorf(codes.ResourceExhausted, "configd has %d watchers already", maxWatchers)
	}
	defer p.remove(w)
	defer w.close()
	p.log.Info("watching", "watcher", w.title(), "pid", pid, "snapshot", w.applied)

	reading := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				reading <- err
				return
			}
			select {
			case w.answers <- m:
			default:
				reading <- status.Error(codes.ResourceExhausted, "answers to questions that nobody asked")
				return
			}
		}
	}()
	go p.follow(stream.Context(), w)
	for {
		select {
		case m := <-w.out:
			if err := stream.Send(m); err != nil {
				return err
			}
		case err := <-reading:
			p.log.Info("no longer watching", "watcher", w.title(), "pid", pid, "reason", err.Error())
			return err
		case <-w.done:
			for { // an Abort may still be on its way
				select {
				case m := <-w.out:
					if err := stream.Send(m); err != nil {
						return err
					}
					continue
				default:
				}
				return status.Errorf(codes.DeadlineExceeded, "no answer within %v; subscribe again", answerTime)
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// follow brings a joined watcher to the snapshot in force, again and again while it refuses: the address that was in
// use may become free.
func (p *Publisher) follow(ctx context.Context, w *watcher) {
	pause := retryFirst
	told := ""
	for {
		if !p.begin(ctx) {
			return
		}
		problems := p.bring(w)
		p.end()
		if len(problems) == 0 {
			pause, told = retryFirst, ""
			select {
			case <-w.wake:
				continue
			case <-w.done:
				return
			}
		}
		if problems[0].Message != told { // once for the same reason, not with every try
			told = problems[0].Message
			for _, f := range problems {
				p.log.Error("the running snapshot is not applied", "watcher", w.title(), "code", string(f.Code), "at", p.at(f), "problem", f.Message)
			}
		}
		select {
		case <-p.after(pause):
		case <-w.wake:
		case <-w.done:
			return
		}
		pause = min(2*pause, retryLast)
	}
}

// at writes where a problem's object stands.
func (p *Publisher) at(f Problem) string {
	s, _, _ := p.Current()
	if s == nil || f.Kind == "" {
		return ""
	}
	place, ok := s.Where(f.Kind, f.Name, f.Field)
	if !ok || place.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d:%d", place.File, place.Line, place.Column)
}

func (p *Publisher) add(w *watcher) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.watchers) >= maxWatchers {
		return false
	}
	p.watchers = append(p.watchers, w)
	return true
}

func (p *Publisher) remove(w *watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, x := range p.watchers {
		if x == w {
			p.watchers = append(p.watchers[:i:i], p.watchers[i+1:]...)
			return
		}
	}
}

// Diagnostic turns a problem into what people read.
func (f Problem) Diagnostic() diag.Diagnostic {
	summary := map[diag.Code]string{
		diag.Refused:      "Refused by " + f.Daemon,
		diag.NoAnswer:     "No answer from " + f.Daemon,
		diag.WentAway:     f.Daemon + " went away",
		diag.NotConfirmed: "Not confirmed by " + f.Daemon,
	}[f.Code]
	context := ""
	if f.Kind != "" {
		context = f.Kind
		if f.Name != "" {
			context += fmt.Sprintf(" %q", f.Name)
		}
	}
	return diag.Diagnostic{Code: f.Code, Summary: summary, Detail: f.Message, Context: context}
}
