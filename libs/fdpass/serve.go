package fdpass

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"time"
)

// Serve makes the socket at path and has answer called for each connection, in a goroutine of its own, for so many at a time as most
// says; more wait in the socket's queue. It returns when it listens. When ctx is done the socket and every connection are closed;
// gone is closed when the socket's name is gone, which the process must not end before. What answer returns is logged, but for
// io.EOF: the peer had no more to say.
func Serve(ctx context.Context, path string, most int, log *slog.Logger, answer func(*Conn) error) (gone <-chan struct{}, err error) {
	l, err := Listen(path)
	if err != nil {
		return nil, err
	}
	log = log.With("socket", filepath.Base(path))
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-ctx.Done()
		l.Close()
	}()
	go func() {
		slots := make(chan struct{}, most)
		for {
			select {
			case <-ctx.Done():
				return
			case slots <- struct{}{}:
			}
			c, err := l.Accept()
			if ctx.Err() != nil {
				if err == nil {
					c.Close()
				}
				return
			}
			if err != nil {
				<-slots
				log.Warn("the socket cannot accept now", "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(refused):
				}
				continue
			}
			go func() {
				defer func() { <-slots }()
				defer c.Close()
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				if err := answer(c); err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
					log.Warn("a peer was sent away", "error", err)
				}
			}()
		}
	}()
	return closed, nil
}

// refused is how long Serve waits after an accept that failed for no want of descriptors: not a busy loop.
const refused = 100 * time.Millisecond
