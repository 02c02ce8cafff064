package generation

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue.dev/libs/preflight"
)

// script writes an executable shell script.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "proxyd")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func within(t *testing.T, exits <-chan Exit) Exit {
	t.Helper()
	select {
	case e := <-exits:
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("the end of the process was not noticed")
		return Exit{}
	}
}

func TestExecStart(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	t.Setenv("LISTEN_FDS", "3")
	t.Setenv("SECRET", "x")
	t.Setenv("RETINUE_LOG", "text")
	out := filepath.Join(t.TempDir(), "out")
	binary := script(t, fmt.Sprintf(`{ echo "$@"; env; ps -o sid= -p $$ 2>/dev/null || cut -d' ' -f6 /proc/$$/stat; echo pid $$; } > %s.new; mv %s.new %s; exit 3`, out, out, out))
	exits := make(chan Exit, 1)
	p, err := Exec{Dir: "/run/suite"}.Start(Launch{Generation: 4, Binary: binary}, func(e Exit) { exits <- e })
	if err != nil {
		t.Fatal(err)
	}
	if e := within(t, exits); e.Reason != "exit status 3" {
		t.Errorf("exit %q", e.Reason)
	}
	if err := p.Signal(syscall.SIGTERM); err == nil {
		t.Error("a process that is gone was signalled")
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	said := string(b)
	for _, want := range []string{"--dir /run/suite --generation 4\n", "RETINUE_GENERATION=4\n", "RETINUE_LOG=text\n", fmt.Sprintf("%d\npid %d\n", p.PID, p.PID)} {
		if !strings.Contains(said, want) {
			t.Errorf("lacks %q:\n%s", want, said)
		}
	}
	for _, ban := range []string{"NOTIFY_SOCKET", "LISTEN_FDS", "SECRET"} {
		if strings.Contains(said, ban) {
			t.Errorf("%s was passed on", ban)
		}
	}
}

func TestExecStartFails(t *testing.T) {
	if _, err := (Exec{}).Start(Launch{1, "/none"}, func(Exit) { t.Error("exited without a process") }); err == nil {
		t.Error("no error")
	}
}

func TestExecPreflight(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{"good", `[ "$1 $2 $3" = "--preflight --dir /run/suite" ] && echo '{"daemon":"proxyd","version":"9","contracts":{"restart/v1":{"revision":1,"min_revision":1}}}'`, ""},
		{"fails", `echo first >&2; echo "no snapshot loads" >&2; exit 1`, "exit status 1: no snapshot loads"},
		{"silent", `exit 1`, "exit status 1"},
		{"nonsense", `echo hello`, "preflight report"},
		{"endless", `while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done | head -c 200000`, "without end"},
		{"hangs", `exec sleep 1000`, "in time"},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit := 10 * time.Second
			if c.name == "hangs" {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			r, err := Exec{Dir: "/run/suite"}.Preflight(ctx, script(t, c.body))
			if c.want == "" {
				if err != nil || r.Version != "9" || r.Check(preflight.New("proxyd", "", "restart/v1")) != nil {
					t.Errorf("%+v %v", r, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// TestExecPreflightIsConfined: the candidate can see no network and no other process where namespaces can be had, and dumps no core
// anywhere. What it leaves behind does not hold it up.
func TestExecPreflightIsConfined(t *testing.T) {
	body := `sleep 1000 >/dev/null 2>&1 &
i=0
while [ "$(ulimit -t)" != 30 ] && [ $i -lt 1000 ]; do i=$((i+1)); sleep 0.01; done # the limits come when it runs already
echo "{\"daemon\":\"proxyd\",\"version\":\"pid $$, $(grep -c : /proc/self/net/dev) interfaces, core $(ulimit -c), cpu $(ulimit -t), secret $SECRET.\",\"contracts\":{\"restart/v1\":{\"revision\":1,\"min_revision\":1}}}"`
	t.Setenv("SECRET", "x")
	r, err := Exec{Dir: "/run/suite"}.Preflight(t.Context(), script(t, body))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"core 0,", "cpu 30,", "secret ."} {
		if !strings.Contains(r.Version, want) {
			t.Errorf("%q, want %q in it", r.Version, want)
		}
	}
	switch r.Sandbox {
	case withoutNamespaces:
		t.Logf("not confined further: %s", r.Sandbox)
	case inNamespaces:
		if !strings.HasPrefix(r.Version, "pid 1, 1 interfaces,") {
			t.Errorf("%q is no namespace of its own", r.Version)
		}
	default:
		t.Errorf("sandbox %q", r.Sandbox)
	}
}

// orphan starts a sleeping copy of a binary that is nobody's child of ours, as after the death of a restartd.
func orphan(t *testing.T, binary string) int {
	t.Helper()
	out, err := exec.Command("/bin/sh", "-c", `"$0" 1000 >/dev/null 2>&1 & echo $!`, binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

func TestAdoptAndSurvivors(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("no sleep here")
	}
	d := depot{filepath.Join(t.TempDir(), "generations")}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := d.install(sleep, 12); err != nil {
		t.Fatal(err)
	}
	pid := orphan(t, d.path(12))
	var found []Survivor
	for deadline := time.Now().Add(10 * time.Second); len(found) == 0; found = (Exec{}).Survivors(d.dir) {
		if time.Now().After(deadline) { // between fork and exec it is a shell
			t.Fatal("the survivor is not found")
		}
	}
	if len(found) != 1 || found[0].PID != pid || found[0].Generation != 12 {
		t.Fatalf("found %+v, want generation 12 as %d", found, pid)
	}
	os.Remove(d.path(12)) // its copy was pruned: still ours
	if again := (Exec{}).Survivors(d.dir); len(again) != 1 {
		t.Errorf("without its file: %+v", again)
	}
	if _, err := (Exec{}).Adopt(pid, found[0].StartTime+1, func(Exit) { t.Error("exited") }); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a process with another start time was adopted: %v", err)
	}
	exits := make(chan Exit, 1)
	p, err := Exec{}.Adopt(pid, found[0].StartTime, func(e Exit) { exits <- e })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(0); err != nil {
		t.Errorf("signal 0: %v", err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, exits)
	if err := p.Signal(syscall.SIGKILL); err != syscall.ESRCH {
		t.Errorf("signal after the end: %v, want ESRCH", err)
	}
	if _, err := (Exec{}).Adopt(pid, found[0].StartTime, nil); err == nil {
		t.Error("a process that is gone was adopted")
	}
}

func TestStat(t *testing.T) {
	tail := " S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"
	for in, want := range map[string]uint64{
		"7 (proxyd)" + tail:       4242,
		"7 (a) S 9 (b c))" + tail: 4242,
		"7 (z) Z" + tail[2:]:      0,
		"7 (short) S 1":           0,
		"":                        0,
		"no name":                 0,
	} {
		got, err := parseStat([]byte(in))
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d %v, want %d", in, got, err, want)
		}
	}
	if n, err := startTime(os.Getpid()); err != nil || n == 0 {
		t.Errorf("our own start time: %d %v", n, err)
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("7 (proxyd) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"))
	f.Add([]byte("7 ()"))
	f.Add([]byte(")                     "))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseStat(b) })
}
