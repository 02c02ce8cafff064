package plugin

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

func niceOf(t *testing.T, tid int) int {
	t.Helper()
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return int(a.Nice)
}

// TestYields: every thread of a plugin yields, also of one that was started again, and nothing of restartd does.
func TestYields(t *testing.T) {
	r := newRig(t)
	before := niceOf(t, os.Getpid())
	r.apply(object("{}", nil))
	check := func(g *restartv1.PluginGeneration) {
		t.Helper()
		dir := filepath.Join("/proc", strconv.Itoa(int(g.GetPid())))
		tasks, err := os.ReadDir(filepath.Join(dir, "task"))
		if err != nil || len(tasks) == 0 {
			t.Fatalf("the threads of the plugin: %v, %v", tasks, err)
		}
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			a, err := unix.SchedGetAttr(tid, 0)
			if err != nil {
				continue // it ended
			}
			if want := max(before, startingNice); int(a.Nice) != want || a.Runtime != 0 && a.Runtime != uint64(yieldingSlice) { // 0: the kernel has no slices
				t.Errorf("thread %d of the plugin is %+v, want nice %d and a slice of %v", tid, a, want, yieldingSlice)
			}
		}
		if b, _ := os.ReadFile(filepath.Join(dir, "autogroup")); len(b) > 0 {
			r.until("its group weighs little", func(*restartv1.Plugin) bool {
				b, _ := os.ReadFile(filepath.Join(dir, "autogroup"))
				return strings.HasSuffix(string(b), " nice 19\n")
			})
		}
	}
	g := serving(r.until("serving", one))
	check(g)
	_ = syscall.Kill(int(g.GetPid()), syscall.SIGKILL)
	check(serving(r.until("it was restarted", func(p *restartv1.Plugin) bool { return one(p) && serving(p).GetPid() != g.GetPid() })))
	if after := niceOf(t, os.Getpid()); after != before {
		t.Errorf("restartd has nice %d, and had %d", after, before)
	}
}

// hesitant is a group's file that takes a value when asked the second time.
type hesitant struct {
	took   chan string
	refuse bool
}

func (h *hesitant) Write(b []byte) (int, error) {
	if h.refuse = !h.refuse; h.refuse {
		return 0, &os.PathError{Op: "write", Path: "autogroup", Err: unix.EAGAIN}
	}
	h.took <- string(b)
	return len(b), nil
}

func (h *hesitant) Close() error {
	close(h.took)
	return nil
}

// TestWeighsAgain: the kernel takes one change of a group in a while from who has no privileges, and several plugins start at once.
func TestWeighsAgain(t *testing.T) {
	p := &process{gone: make(chan struct{})}
	group, settled := &hesitant{took: make(chan string)}, make(chan struct{})
	go p.weigh(group, settled)
	if got := <-group.took; got != "10" {
		t.Errorf("a plugin starts with %q", got)
	}
	close(settled)
	if got := <-group.took; got != "19" {
		t.Errorf("it serves with %q", got)
	}
	close(p.gone)
	if got, more := <-group.took; more {
		t.Errorf("more: %q", got)
	}
}

// TestRestartTakesTheCopy: a restart after a crash copies the program only if somebody changed that, or the copy.
func TestRestartTakesTheCopy(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	first, err := copyProgram(os.Args[0], program, copied{})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.apply(object("{}", func(p *configv1.Plugin) { p.Command = program }))
	g := serving(r.until("serving", one))
	again := func() (same bool) {
		t.Helper()
		old, err := os.Stat(r.programPath("p", g.GetNumber()))
		if err != nil {
			t.Fatal(err)
		}
		was := g.GetPid()
		_ = syscall.Kill(int(was), syscall.SIGKILL)
		g = serving(r.until("it was restarted", func(p *restartv1.Plugin) bool { return one(p) && serving(p).GetPid() != was }))
		now, err := os.Stat(r.programPath("p", g.GetNumber()))
		if err != nil {
			t.Fatal(err)
		}
		if got := g.GetSha256(); got != first.sum {
			t.Errorf("the restarted program has the hash %q, want %q", got, first.sum)
		}
		left, err := filepath.Glob(r.programPath("p", 0)[:len(r.programPath("p", 0))-1] + "*")
		if err != nil || len(left) != 1 {
			t.Errorf("copies %q, %v", left, err)
		}
		return os.SameFile(old, now)
	}
	if !again() {
		t.Error("a restart copied a program that is what it was")
	}
	if err := os.Chmod(program, 0o755); err != nil { // its time of change is another
		t.Fatal(err)
	}
	if again() {
		t.Error("a restart did not copy a program that changed")
	}
	if !again() {
		t.Error("the second restart copied it again")
	}
	own := r.programPath("p", g.GetNumber())
	if err := errors.Join(os.Rename(own, own+"-gone"), os.WriteFile(own, []byte("#!/bin/false\n"), 0o700), os.Remove(own+"-gone")); err != nil {
		t.Fatal(err)
	}
	if again() {
		t.Error("a restart took a copy that somebody changed")
	}
}
