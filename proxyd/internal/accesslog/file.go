package accesslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/spool"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	// retryOpen is how often a file that cannot be opened is tried again at the most.
	retryOpen = time.Second
	// warnEvery bounds what is said about a file that does not take lines.
	warnEvery = time.Minute
	fileMode  = 0o640
)

// Worker is what Logs needs of one worker: its loop, and its cell for lines that it had to drop.
type Worker struct {
	*worker.Worker
	Dropped *uint64
}

// Logs are the access-log files of the process. Main side; its methods may be called from any goroutine.
//
// Life: New with the workers; Log for each access log of a snapshot; Reopen at USR1; Close when the workers have stopped. A file
// is opened with its first line and stays until the process ends: streams of an older snapshot may still write to it.
type Logs struct {
	workers []Worker
	log     *slog.Logger
	count   func(failedWrites, droppedLines uint64)
	retry   time.Duration // between attempts to open a file

	mu     sync.Mutex
	files  map[string]*File // by path
	closed bool
	done   sync.WaitGroup
}

// New makes the logs of a process. count is called, by one flusher at a time, with what could not be written.
func New(workers []Worker, log *slog.Logger, count func(failedWrites, droppedLines uint64)) *Logs {
	return &Logs{workers: workers, log: log, count: count, retry: retryOpen, files: map[string]*File{}}
}

// Check tells whether an access log can be used, without opening anything.
func Check(log *configv1.AccessLog) error {
	if _, err := Compile(log); err != nil {
		return err
	}
	if !filepath.IsAbs(log.GetPath()) {
		return fmt.Errorf("path %q is not absolute: proxyd may run in any directory", log.GetPath())
	}
	return nil
}

// Log makes the access log of a configuration object.
func (l *Logs) Log(config *configv1.AccessLog) (*Log, error) {
	if err := Check(config); err != nil {
		return nil, err
	}
	program, err := Compile(config)
	if err != nil {
		return nil, err
	}
	if most := chunkBytes - maxLine; program.MinRoom() > most {
		return nil, fmt.Errorf("format: its lines may have %d bytes without any value, at most %d are possible", program.MinRoom(), most)
	}
	file, err := l.file(config.GetPath())
	if err != nil {
		return nil, err
	}
	return &Log{program: program, file: file, clocks: make([]Clock, len(l.workers)), room: program.MinRoom() + maxLine}, nil
}

// file returns the file of a path and starts its flusher when it is new.
func (l *Logs) file(path string) (*File, error) {
	path = filepath.Clean(path)
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.files[path]; f != nil {
		return f, nil
	}
	if l.closed {
		return nil, errors.New("the process is ending")
	}
	workers := make([]*worker.Worker, len(l.workers))
	for i, w := range l.workers {
		workers[i] = w.Worker
	}
	queue, err := spool.New("access log", workers, spool.Sizes{Chunk: chunkBytes, HandOver: handOver, Interval: flushInterval})
	if err != nil {
		return nil, fmt.Errorf("access log %s: %w", path, err)
	}
	f := &File{path: path, logs: l, fd: -1, spool: queue}
	l.files[path] = f
	l.done.Add(1)
	go f.flush()
	return f, nil
}

// Reopen makes every flusher close its file and open it again: a log rotator has moved it away.
func (l *Logs) Reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.files {
		f.reopen.Store(true)
		f.spool.Wake()
	}
}

// Close writes what the workers have left, who must have stopped, and ends the flushers. A disk that takes longer than ctx is
// left alone.
func (l *Logs) Close(ctx context.Context) {
	l.mu.Lock()
	l.closed = true
	for _, f := range l.files {
		f.spool.Finish()
	}
	l.mu.Unlock()
	finished := make(chan struct{})
	go func() {
		l.done.Wait()
		close(finished)
	}()
	select {
	case <-finished:
	case <-ctx.Done():
		l.log.Warn("access logs were not written to their end: a file did not take it in time")
	}
}

// File is one log file with its flusher, a goroutine of the main side. Workers give it chunks; it writes each by one call to a
// descriptor in append mode, so that lines of several workers and processes never mix.
type File struct {
	path   string
	logs   *Logs
	spool  *spool.Spool
	reopen atomic.Bool

	// The flusher's own.
	fd     int // -1 when not open
	torn   bool
	tried  time.Time
	warned time.Time
	silent uint64 // lines dropped since the last warning
}

func (f *File) flush() {
	defer f.logs.done.Done()
	for {
		ended := f.spool.Ended()
		if f.reopen.Swap(false) {
			f.close()
		}
		f.spool.Drain(func(_ int, c *spool.Chunk) { f.write(c) })
		if ended {
			f.spool.Rest(func(_ int, c *spool.Chunk) bool {
				f.write(c)
				return true
			})
			f.close()
			return
		}
		if err := f.spool.Wait(); err != nil {
			f.logs.log.Error("an access log ends: its flusher cannot wait", "path", f.path, "error", err)
			return
		}
	}
}

// write writes a chunk, by one call where the file takes it whole.
func (f *File) write(c *spool.Chunk) {
	if f.fd < 0 && !f.open() {
		f.lost(uint64(c.Records), nil)
		return
	}
	rest := c.Bytes
	if f.torn {
		if _, err := f.put([]byte("\n")); err != nil {
			f.lost(uint64(c.Records), err)
			return
		}
		f.torn = false
	}
	for len(rest) > 0 {
		n, err := f.put(rest)
		if n > 0 {
			f.torn = rest[n-1] != '\n'
			rest = rest[n:]
		}
		if err != nil {
			f.lost(uint64(bytes.Count(rest, []byte("\n"))), err)
			return
		}
	}
}

func (f *File) put(b []byte) (int, error) {
	for {
		n, err := unix.Write(f.fd, b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN: // standard output may be a pipe that somebody made non-blocking
			wait := []unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLOUT}}
			if _, err := unix.Poll(wait, 1000); err != nil && err != unix.EINTR {
				return 0, err
			}
		case err == nil && n == 0:
			return 0, unix.ENOSPC
		default:
			return max(n, 0), err
		}
	}
}

// open opens the file, at most once in a while when that fails.
func (f *File) open() bool {
	if time.Since(f.tried) < f.logs.retry {
		return false
	}
	f.tried = time.Now()
	var fd int
	var err error
	switch f.path {
	case "/dev/stdout": // opening the name fails where it is a socket, as under systemd
		fd, err = unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 0)
	case "/dev/stderr":
		fd, err = unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 0)
	default:
		fd, err = unix.Open(f.path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOCTTY, fileMode)
	}
	if err != nil {
		f.warn("the access log cannot be opened; its lines are dropped until it can", err)
		f.logs.countLost(1, 0)
		return false
	}
	f.fd, f.torn, f.tried = fd, false, time.Time{}
	return true
}

func (f *File) close() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd, f.torn = -1, false
	}
	f.tried = time.Time{}
}

// lost counts lines that were not written; err is nil when the file could not even be opened.
func (f *File) lost(lines uint64, err error) {
	f.silent += lines
	failed := uint64(0)
	if err != nil {
		failed = 1
		f.warn("the access log does not take lines; they are dropped until it does", err)
	}
	f.logs.countLost(failed, lines)
}

func (f *File) warn(what string, err error) {
	if !f.warned.IsZero() && time.Since(f.warned) < warnEvery {
		return
	}
	f.logs.log.Warn(what, "path", f.path, "error", err, "lines_dropped_before", f.silent)
	f.warned, f.silent = time.Now(), 0
}

func (l *Logs) countLost(failed, lines uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(failed, lines)
}
