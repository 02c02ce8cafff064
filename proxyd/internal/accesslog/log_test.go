package accesslog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// bench is two workers whose loops the test turns, and the logs over them.
type bench struct {
	t       *testing.T
	logs    *Logs
	workers []*worker.Worker
	dropped [2]uint64 // by workers

	mu           sync.Mutex
	failed, lost uint64 // by flushers
	said         bytes.Buffer
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t}
	var ends []Worker
	for id := range 2 {
		p, err := epoll.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Destroy)
		w, err := worker.New(id, p)
		if err != nil {
			t.Fatal(err)
		}
		b.workers = append(b.workers, w)
		ends = append(ends, Worker{w, &b.dropped[id]})
	}
	b.logs = New(ends, slog.New(slog.NewTextHandler(b, nil)), func(failed, lost uint64) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.failed += failed
		b.lost += lost
	})
	b.logs.retry = 0
	return b
}

// Write takes what is logged.
func (b *bench) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.said.Write(p)
}

func (b *bench) open(path string) *Log {
	b.t.Helper()
	l, err := b.logs.Log(&configv1.AccessLog{Path: path, Format: "%ROUTE_NAME% %BYTES_SENT%"})
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

func (b *bench) line(l *Log, id int, text string, n int) {
	s := &stream.Stream{Worker: b.workers[id]}
	s.RouteName, s.BytesSent = text, uint64(n)
	l.Log(s)
}

// until turns the loops until ok.
func (b *bench) until(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			b.t.Fatalf("%s did not happen", what)
		}
		for _, w := range b.workers {
			w.Turn(int64(2 * time.Millisecond))
		}
	}
}

func (b *bench) counts() (failed, lost uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed, b.lost
}

func (b *bench) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b.logs.Close(ctx)
}

func holds(path, text string) func() bool {
	return func() bool {
		raw, _ := os.ReadFile(path)
		return strings.Contains(string(raw), text)
	}
}

func TestLinesArrive(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "access.log")
	l := b.open(path)
	b.line(l, 0, "one", 1)
	b.line(l, 1, "two", 2)
	b.until("the timed flush", func() bool { return holds(path, "one 1\n")() && holds(path, "two 2\n")() })
	b.line(l, 0, "last", 3) // waits in its worker when the process ends
	b.close()
	if !holds(path, "last 3\n")() {
		t.Error("the last line is missing after Close")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("the log is %v: others may read addresses of clients", info.Mode())
	}
}

// TestOrderUnderLoad holds that each worker's lines are whole and in order through many chunks.
func TestOrderUnderLoad(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "access.log")
	l := b.open(path)
	const n = 20000
	for i := range n {
		for id := range 2 {
			for b.workers[id].Turn(0); b.dropped[id] > 0; b.dropped[id] = 0 {
				b.t.Fatalf("line %d was dropped", i)
			}
			b.line(l, id, fmt.Sprintf("worker%d", id), i)
			if l.file.spool.End(id).Waiting() > chunkBytes/2 {
				b.until("room", func() bool { return l.file.spool.End(id).Waiting() < handOver })
			}
		}
	}
	b.close()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var next [2]int
	for line := range strings.Lines(string(raw)) {
		var id, i int
		if _, err := fmt.Sscanf(line, "worker%d %d\n", &id, &i); err != nil || i != next[id] {
			t.Fatalf("line %q where worker%d %d is due", line, id, next[id])
		}
		next[id]++
	}
	if next != [2]int{n, n} {
		t.Errorf("%v lines arrived, want %d each", next, n)
	}
}

func TestReopen(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "access.log")
	l := b.open(path)
	b.line(l, 0, "before", 1)
	b.until("the first line", holds(path, "before"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	b.logs.Reopen()
	b.line(l, 0, "after", 2)
	b.until("the line in the new file", holds(path, "after 2\n"))
	if holds(path+".1", "after")() {
		t.Error("the rotated file was written to")
	}
	b.close()
}

func TestMissingDirectory(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "later")
	l := b.open(filepath.Join(dir, "access.log"))
	b.line(l, 0, "lost", 1)
	b.line(l, 0, "lost", 2)
	b.until("the loss", func() bool { _, lost := b.counts(); return lost == 2 })
	if failed, _ := b.counts(); failed == 0 {
		t.Error("the failure was not counted")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b.line(l, 0, "back", 3)
	b.until("recovery", holds(l.file.path, "back 3\n"))
	b.close()
	if n := strings.Count(b.said.String(), "cannot be opened"); n != 1 {
		t.Errorf("warned %d times, once a minute is enough: %s", n, b.said.String())
	}
}

func TestFullDisk(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "access.log")
	if err := os.Symlink("/dev/full", path); err != nil {
		t.Fatal(err)
	}
	l := b.open(path)
	for i := range 3 {
		b.line(l, 0, "lost", i)
	}
	b.until("the loss", func() bool { failed, lost := b.counts(); return lost == 3 && failed > 0 })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	b.logs.Reopen()
	b.line(l, 0, "back", 1)
	b.until("recovery", holds(path, "back 1\n"))
	b.close()
	if !strings.Contains(b.said.String(), "no space left") {
		t.Errorf("nobody was told why: %s", b.said.String())
	}
}

// TestTornLine holds that a line that a full disk cut in the middle does not swallow the next one.
func TestTornLine(t *testing.T) {
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "access.log")
	b := newBench(t)
	l := b.open(path)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 20, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	b.line(l, 0, "aaaaaaaaaa", 1) // 13 bytes
	b.line(l, 0, "bbbbbbbbbb", 2)
	b.line(l, 0, "cccccccccc", 3)
	b.until("the loss", func() bool { _, lost := b.counts(); return lost == 2 })
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	b.line(l, 0, "dddddddddd", 4)
	b.until("recovery", holds(path, "dddd"))
	b.close()
	raw, _ := os.ReadFile(path)
	if want := "aaaaaaaaaa 1\nbbbbbbb\ndddddddddd 4\n"; string(raw) != want {
		t.Errorf("the file holds %q, want %q", raw, want)
	}
}

// TestNeverBlocks holds that a worker whose file does not move goes on, drops lines within its memory, counts them, and has the
// rest written when the file moves again.
func TestNeverBlocks(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l := b.open(path)
	long := strings.Repeat("x", 1000)
	i := 0
	for ; b.dropped[0] == 0; i++ {
		if i > 1<<20 {
			t.Fatal("nothing was dropped: memory is not bounded")
		}
		b.line(l, 0, long, i)
	}
	kept := i - 1
	if kept*1000 > 2*chunkBytes {
		t.Errorf("%d kilobytes were kept for a file that does not move", kept)
	}
	lines := make(chan int)
	go func() {
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
		}
		raw, _ := io.ReadAll(f)
		f.Close()
		lines <- bytes.Count(raw, []byte("\n"))
	}()
	b.until("the flusher", func() bool { return l.file.spool.End(0).Waiting() == 0 })
	b.close()
	if n := <-lines; n != kept {
		t.Errorf("%d lines arrived, %d were kept", n, kept)
	}
}

func TestLogDoesNotAllocate(t *testing.T) {
	b := newBench(t)
	l := b.open(filepath.Join(t.TempDir(), "access.log"))
	s := &stream.Stream{Worker: b.workers[0]}
	s.RouteName = "/"
	l.Log(s) // makes the chunks
	if n := testing.AllocsPerRun(1000, func() { l.Log(s) }); n != 0 {
		t.Errorf("%v allocations a line", n)
	}
	b.close()
}

func TestCheckRefuses(t *testing.T) {
	for _, test := range []struct {
		log  *configv1.AccessLog
		want string
	}{
		{&configv1.AccessLog{Path: "/x", Format: "%NOPE%"}, "no operator"},
		{&configv1.AccessLog{Path: "/x", Json: []*configv1.JsonField{{Name: "a", Format: "b"}, {Name: "c", Format: "%"}}}, "json[1]"},
		{&configv1.AccessLog{Path: "access.log", Format: "x"}, "not absolute"},
	} {
		if err := Check(test.log); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Check(%v) = %v, want something with %q", test.log, err, test.want)
		}
	}
}
