package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// busiest is the thread of a process that ran for the longest while f did.
func busiest(t *testing.T, pid int, f func()) (tid int) {
	t.Helper()
	ran := func() map[int]int64 {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			t.Fatal(err)
		}
		ns := map[int]int64{}
		for _, path := range tasks {
			raw, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended
			}
			var n int64
			if _, err := fmt.Sscan(string(raw), &n); err != nil {
				t.Fatal(err)
			}
			id, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			ns[id] = n
		}
		return ns
	}
	before := ran()
	f()
	longest := int64(0)
	for id, n := range ran() {
		if n -= before[id]; n > longest {
			longest, tid = n, id
		}
	}
	if tid == 0 {
		t.Fatalf("no thread of process %d ran", pid)
	}
	return tid
}

// hang stops a worker's thread of a proxyd, the one that requests keep busy, and nothing else of it, by the means of a debugger. The
// returned function waits until the thread is gone.
func hang(t *testing.T, pid int, requests func()) (ended func()) {
	t.Helper()
	tid := busiest(t, pid, requests)
	stopped, gone := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the tracer is a thread
		defer runtime.UnlockOSThread()
		defer close(gone)
		err := unix.PtraceSeize(tid)
		if err == nil {
			err = unix.PtraceInterrupt(tid)
		}
		var status unix.WaitStatus
		if err == nil {
			_, err = unix.Wait4(tid, &status, unix.WALL, nil)
		}
		if err == nil && !status.Stopped() {
			err = fmt.Errorf("thread %d did not stop: %#x", tid, status)
		}
		stopped <- err
		for err == nil && !status.Exited() && !status.Signaled() {
			_, err = unix.Wait4(tid, &status, unix.WALL, nil)
		}
	}()
	if err := <-stopped; err != nil {
		t.Fatalf("thread %d of process %d: %v", tid, pid, err)
	}
	return func() { <-gone }
}
