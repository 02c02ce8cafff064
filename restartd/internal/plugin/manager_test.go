package plugin

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
	filterv1 "retinue.dev/services/api/filter/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

const patience = 20 * time.Second

// rig is a manager over directories of its own.
type rig struct {
	*Manager
	t   *testing.T
	opt Options
}

func newRig(t *testing.T) *rig {
	dir, err := os.MkdirTemp("", "plugins") // t.TempDir's may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, opt: Options{
		StateDir: filepath.Join(dir, "state"), RunDir: dir, Log: slog.New(slog.DiscardHandler),
		Times: Times{BackOff: 10 * time.Millisecond, Crashes: 3, Circuit: 300 * time.Millisecond, Kill: time.Second},
	}}
	r.start()
	t.Cleanup(func() { r.Stop() })
	return r
}

func (r *rig) start() {
	r.t.Helper()
	m, err := New(r.opt)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Manager = m
	go m.Run()
}

// object is a plugin block whose program is this test.
func object(config string, change func(*configv1.Plugin)) *configv1.Object {
	p := &configv1.Plugin{Name: "p", Command: os.Args[0], ConfigJson: []byte(config)}
	if change != nil {
		change(p)
	}
	sum := sha256.Sum256(fmt.Append(nil, p.String()))
	return &configv1.Object{Kind: "plugin", Name: "p", Hash: sum[:], Body: &configv1.Object_Plugin{Plugin: p}}
}

func (r *rig) apply(o ...*configv1.Object) {
	r.t.Helper()
	if refused := r.Prepare(o); refused != nil {
		r.t.Fatalf("refused: %v", refused)
	}
	r.Commit()
}

// until waits for the table's only plugin to be as wanted.
func (r *rig) until(what string, check func(p *restartv1.Plugin) bool) *restartv1.Plugin {
	r.t.Helper()
	var last *restartv1.PluginTable
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var err error
		if last, err = r.Table(); err != nil {
			r.t.Fatal(err)
		}
		if ps := last.GetPlugins(); len(ps) == 1 && check(ps[0]) {
			return ps[0]
		}
	}
	r.t.Fatalf("%s: not in %v", what, last)
	return nil
}

func in(p *restartv1.Plugin, s restartv1.PluginState) (list []*restartv1.PluginGeneration) {
	for _, g := range p.GetGenerations() {
		if g.GetState() == s {
			list = append(list, g)
		}
	}
	return list
}

func one(p *restartv1.Plugin) bool {
	return len(in(p, restartv1.PluginState_PLUGIN_STATE_SERVING)) == 1
}

func serving(p *restartv1.Plugin) *restartv1.PluginGeneration {
	return in(p, restartv1.PluginState_PLUGIN_STATE_SERVING)[0]
}

func alive(pid int64) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestChangedBlockIsANewGeneration(t *testing.T) {
	r := newRig(t)
	r.apply(object("{}", nil))
	first := serving(r.until("serving", one))
	r.apply(object("{}", nil))
	if again := serving(r.until("serving", one)); again.GetPid() != first.GetPid() {
		t.Errorf("an unchanged block started pid %d beside %d", again.GetPid(), first.GetPid())
	}
	if refused := r.Prepare([]*configv1.Object{object(`{"mode":"other"}`, nil)}); refused != nil {
		t.Fatal(refused)
	}
	ready := in(r.until("ready", func(p *restartv1.Plugin) bool { return len(in(p, restartv1.PluginState_PLUGIN_STATE_READY)) == 1 }), restartv1.PluginState_PLUGIN_STATE_READY)[0]
	r.Abort()
	r.until("the candidate is gone", func(p *restartv1.Plugin) bool {
		return !alive(ready.GetPid()) && one(p) && serving(p).GetPid() == first.GetPid()
	})
	r.apply(object(`{"mode":"other"}`, nil))
	r.until("the new one serves and the old one is gone", func(p *restartv1.Plugin) bool {
		return one(p) && serving(p).GetPid() != first.GetPid() && !alive(first.GetPid())
	})
	log := filepath.Join(r.stateDir("p"), fmt.Sprintf("%d.log", first.GetNumber()))
	if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), "retired 1\n") {
		t.Errorf("the drained generation was not told that its configuration is over: %q, %v", b, err)
	}
	r.apply()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		table, err := r.Table()
		if err == nil && len(table.GetPlugins()) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a plugin that left the configuration: %v, %v", table, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		change     func(*configv1.Plugin)
		field, why string
	}{
		"no program":        {func(p *configv1.Plugin) { p.Command = "absent" }, "command", "there is no"},
		"no file":           {func(p *configv1.Plugin) { p.Command = "/absent" }, "command", "no such file"},
		"no executable":     {func(p *configv1.Plugin) { p.Command = "/etc/passwd" }, "command", "no executable"},
		"no plugin":         {func(p *configv1.Plugin) { p.Command = "/bin/true" }, "command", "before the handshake"},
		"hash":              {func(p *configv1.Plugin) { p.Sha256 = strings.Repeat("0", 64) }, "sha256", "has the hash"},
		"newer protocol":    {func(p *configv1.Plugin) { p.Environment = []string{"FAKE_HANDSHAKE=1|9|unix|fake.sock|frames"} }, "command", "version 9"},
		"unknown control":   {func(p *configv1.Plugin) { p.Environment = []string{"FAKE_HANDSHAKE=1|1|unix|fake.sock|soap"} }, "command", "soap"},
		"TLS":               {func(p *configv1.Plugin) { p.Environment = []string{"FAKE_HANDSHAKE=1|1|unix|fake.sock|grpc|MIIB"} }, "command", "AutoMTLS"},
		"unknown setting":   {func(p *configv1.Plugin) { p.ConfigJson = []byte(`{"moed":"x"}`) }, "config.moed", "knows no"},
		"type of setting":   {func(p *configv1.Plugin) { p.ConfigJson = []byte(`{"mode":1}`) }, "config.mode", "a string"},
		"refused by itself": {func(p *configv1.Plugin) { p.ConfigJson = []byte(`{"mode":"refuse"}`) }, "config.mode", "not that one"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			got := r.Prepare([]*configv1.Object{object("{}", test.change)})
			if len(got) != 1 || got[0].GetKind() != "plugin" || got[0].GetName() != "p" || got[0].GetField() != test.field || !strings.Contains(got[0].GetMessage(), test.why) {
				t.Errorf("%v; want field %s with %q", got, test.field, test.why)
			}
			if left, _ := filepath.Glob(filepath.Join(r.opt.RunDir, "plugins", "*")); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

func TestCrashesAndCircuit(t *testing.T) {
	r := newRig(t)
	r.apply(object("{}", nil))
	for i := range 2 {
		g := serving(r.until("serving", one))
		if err := syscall.Kill(int(g.GetPid()), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.until(fmt.Sprintf("restart %d", i+1), func(p *restartv1.Plugin) bool {
			return one(p) && serving(p).GetPid() != g.GetPid() && p.GetRestarts() == uint64(i+1)
		})
	}
	g := serving(r.until("serving", one))
	_ = syscall.Kill(int(g.GetPid()), syscall.SIGKILL)
	p := r.until("the circuit is open", func(p *restartv1.Plugin) bool { return p.GetCircuitOpen() })
	if p.GetNextStartUnixMs() == 0 || !strings.Contains(p.GetMessage(), "not started for") {
		t.Errorf("with an open circuit: %v", p)
	}
	r.until("it is tried again", one)
}

// A restartd that is killed leaves its plugins running, and the next one takes charge of them.
func TestAdoption(t *testing.T) {
	r := newRig(t)
	r.apply(object("{}", nil))
	before := serving(r.until("serving", one))
	stale := []string{
		r.programPath("p", 77), r.programPath("gone", 1), filepath.Join(r.runDir("p", 77), "data.sock"),
		filepath.Join(r.stateDir("p"), "91.log"), // beyond the newest three
		filepath.Join(r.stateDir("p"), "92.log"), filepath.Join(r.stateDir("p"), "93.log"), filepath.Join(r.stateDir("p"), "94.log"),
	}
	for _, path := range stale {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	abandoned := r.Manager
	_ = abandoned.call(func() {
		for _, p := range abandoned.plugins {
			p.wanted = false // else it would start a successor when the process ends below
		}
	})
	r.start()
	after := serving(r.until("adopted", one))
	if after.GetPid() != before.GetPid() || after.GetNumber() != before.GetNumber() || !alive(before.GetPid()) {
		t.Errorf("before %v, after %v", before, after)
	}
	for i, path := range stale {
		if _, err := os.Stat(path); os.IsNotExist(err) != (i < 4) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Stat(r.programPath("p", before.GetNumber())); err != nil {
		t.Errorf("the program of the adopted generation: %v", err)
	}
	r.apply(object("{}", nil))
	if again := serving(r.until("serving", one)); again.GetPid() != before.GetPid() {
		t.Errorf("the snapshot started another one: %v", again)
	}
	_ = syscall.Kill(int(before.GetPid()), syscall.SIGKILL)
	r.until("it was restarted", func(p *restartv1.Plugin) bool { return one(p) && serving(p).GetPid() != before.GetPid() })
}

// What a plugin has started ends with it.
func TestWholeSessionEnds(t *testing.T) {
	r := newRig(t)
	r.apply(object(`{"mode":"child"}`, nil))
	g := serving(r.until("serving", one))
	var child int64
	for deadline := time.Now().Add(patience); child == 0 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(r.until("its output", func(p *restartv1.Plugin) bool { return p.GetLogPath() != "" }).GetLogPath())
		if _, text, ok := strings.Cut(string(b), "child "); ok {
			_, _ = fmt.Sscan(text, &child)
		}
	}
	if child == 0 || !alive(child) {
		t.Fatalf("child %d", child)
	}
	_ = syscall.Kill(int(g.GetPid()), syscall.SIGKILL)
	for deadline := time.Now().Add(patience); alive(child); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("child %d outlives its plugin", child)
		}
	}
}

func TestSwapAndRollback(t *testing.T) {
	r := newRig(t)
	r.apply(object("{}", nil))
	first := serving(r.until("serving", one))
	end := func(events <-chan *restartv1.PluginEvent, err error) *restartv1.PluginEvent {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var last *restartv1.PluginEvent
		for e := range events {
			last = e
		}
		return last
	}
	if e := end(r.Swap(&restartv1.SwapPluginRequest{Name: "p", Program: "/bin/true"})); e.GetOk() || !strings.Contains(e.GetMessage(), "handshake") {
		t.Errorf("a program that is no plugin: %v", e)
	}
	if g := serving(r.until("serving", one)); g.GetPid() != first.GetPid() {
		t.Errorf("a refused swap replaced %v", first)
	}
	other := filepath.Join(r.opt.RunDir, "other")
	raw, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Rollback("p"); err == nil {
		t.Error("a rollback with nothing to go back to is not refused")
	}
	if e := end(r.Swap(&restartv1.SwapPluginRequest{Name: "p", Program: other, CanaryPercent: 10, CanaryMs: 20})); !e.GetOk() {
		t.Errorf("swap: %v", e)
	}
	p := r.until("swapped", func(p *restartv1.Plugin) bool { return one(p) && serving(p).GetProgram() == other })
	if p.GetPreviousProgram() != os.Args[0] {
		t.Errorf("previous program %q", p.GetPreviousProgram())
	}
	_ = syscall.Kill(int(serving(p).GetPid()), syscall.SIGKILL)
	r.until("a crash keeps the swap", func(q *restartv1.Plugin) bool {
		return one(q) && serving(q).GetProgram() == other && serving(q).GetPid() != serving(p).GetPid()
	})
	if e := end(r.Rollback("p")); !e.GetOk() {
		t.Errorf("rollback: %v", e)
	}
	r.until("rolled back", func(p *restartv1.Plugin) bool { return one(p) && serving(p).GetProgram() == os.Args[0] })
}

// Counters go on over a new generation, gauges are those of the living.
func TestMetrics(t *testing.T) {
	r := newRig(t)
	r.apply(object("{}", nil))
	first := serving(r.until("serving", one))
	read := func() string {
		t.Helper()
		r.tally.asked = time.Time{}
		reply, err := r.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, m := range reply.GetMetrics() {
			words = append(words, fmt.Sprintf("%s.%s=%g/%v", m.GetPlugin(), m.GetName(), m.GetValue(), m.GetGauge()))
		}
		return strings.Join(words, " ")
	}
	for range 2 {
		if got, want := read(), "p.calls=5/false p.open=2/true"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	_ = syscall.Kill(int(first.GetPid()), syscall.SIGKILL)
	r.until("another one", func(p *restartv1.Plugin) bool { return one(p) && serving(p).GetPid() != first.GetPid() })
	if got, want := read(), "p.calls=10/false p.open=2/true"; got != want {
		t.Errorf("after a crash: %s, want %s", got, want)
	}

	// A generation that drains is asked once more; then restartd ends, and the next one goes on.
	before := serving(r.until("serving", one))
	r.apply(object(`{"mode":"other"}`, nil))
	r.until("the new one serves and the old one is gone", func(p *restartv1.Plugin) bool { return one(p) && !alive(before.GetPid()) })
	abandoned := r.Manager
	_ = abandoned.call(func() {
		for _, p := range abandoned.plugins {
			p.wanted = false // else it would start a successor when the process ends
		}
	})
	r.start()
	r.until("adopted", one)
	if got, want := read(), "p.calls=15/false p.open=2/true"; got != want {
		t.Errorf("after a restart of restartd: %s, want %s", got, want)
	}
	for _, damage := range []string{"", "{", `{"version":9}`, `{"version":1,"total":{"p":{"calls":-1}}}`, `{"version":1,"total":{"p":null}}`} {
		if err := os.WriteFile(r.totalsPath(), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		r.tally.total, r.tally.seen, r.tally.kept = nil, nil, nil
		r.readTotals()
		if got, want := read(), "p.calls=5/false p.open=2/true"; got != want {
			t.Errorf("with %q for a file: %s, want what the living have counted, %s", damage, got, want)
		}
	}
}

func FuzzTotals(f *testing.F) {
	f.Add([]byte(`{"version":1,"total":{"p":{"calls":5}},"seen":[{"plugin":"p","generation":1,"counters":{"calls":5}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		total, before, err := parseTotals(b)
		if err != nil {
			return
		}
		tl := tally{total: total, seen: before}
		metrics := []*filterv1.Metric{{Name: "calls", Value: 7}}
		for _, m := range tl.sum(map[string]bool{"p": true}, []asked{{generationOf: generationOf{"p", 1}}}, [][]*filterv1.Metric{metrics}).GetMetrics() {
			if m.GetValue() < 0 || math.IsNaN(m.GetValue()) {
				t.Errorf("%v", m)
			}
		}
	})
}

func TestMetricsAreBounded(t *testing.T) {
	var list []*filterv1.Metric
	for i := range 1000 {
		list = append(list, &filterv1.Metric{Name: fmt.Sprintf("m%d", i), Value: 1})
	}
	list = append(list, &filterv1.Metric{Name: "nan", Value: math.NaN()})
	if got := sane(list); len(got) != maxMetrics {
		t.Errorf("%d metrics are taken", len(got))
	}
	for _, bad := range []*filterv1.Metric{{}, {Name: "1a"}, {Name: "a-b"}, {Name: "x", Value: math.Inf(1)}, {Name: "x", Value: -1}, {Name: strings.Repeat("a", 65)}} {
		if got := sane([]*filterv1.Metric{bad}); len(got) != 0 {
			t.Errorf("%v is taken", bad)
		}
	}
	var tl tally
	for round := range 3 { // names that change all the time
		now := []*filterv1.Metric{}
		for i := range maxMetrics {
			now = append(now, &filterv1.Metric{Name: fmt.Sprintf("m%d_%d", round, i), Value: 1})
		}
		if got := tl.sum(map[string]bool{"p": true}, []asked{{generationOf: generationOf{"p", 1}}}, [][]*filterv1.Metric{now}); len(got.GetMetrics()) > maxMetrics {
			t.Errorf("round %d: %d series", round, len(got.GetMetrics()))
		}
	}
}

func TestOutputIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 1000 {
		fmt.Fprintf(w, "line %d\n", i)
	}
	if cut, err := cutOutput(path, 1<<20, 100); cut || err != nil {
		t.Errorf("a small file: %v, %v", cut, err)
	}
	if cut, err := cutOutput(path, 1000, 100); !cut || err != nil {
		t.Errorf("a large file: %v, %v", cut, err)
	}
	fmt.Fprintln(w, "after")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(b) > 200 || !strings.Contains(lines[0], "were cut here") || lines[len(lines)-1] != "after" || lines[len(lines)-2] != "line 999" || !strings.HasPrefix(lines[1], "line 9") {
		t.Errorf("left is %q", b)
	}
	if _, err := cutOutput(path, 10, 0); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 0 {
		t.Errorf("%v, %v", st, err)
	}
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := cutOutput(link, 0, 0); err == nil {
		t.Error("a link is followed")
	}
}

// The wrapper of a unit becomes the program, with its environment and limits and nothing else.
func TestExec(t *testing.T) {
	dir := t.TempDir()
	if dir := os.Getenv("TEST_EXEC"); dir != "" {
		t.Fatal(Exec(dir))
	}
	b, err := json.Marshal(&start{Program: "/bin/sh", Args: []string{"-c", `echo "$A|$TEST_EXEC|$(ulimit -n)|$(ulimit -c)|$(nice)|$PWD|$1"`, "sh", "a b"}, Environment: []string{"A=1"}, Files: 77})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, startFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(os.Args[0], "-test.run", "^TestExec$")
	c.Env = append(os.Environ(), "TEST_EXEC="+dir)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := os.ReadFile(filepath.Join(dir, outputFile))
	if want := fmt.Sprintf("1||77|0|%d|%s|a b\n", max(niceOf(t, 0), startingNice), dir); err != nil || string(out) != want {
		t.Errorf("%q, want %q, %v", out, want, err)
	}
	if _, err := os.Stat(filepath.Join(dir, startFile)); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", startFile, err)
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte("1|1|unix|a|grpc\n"))
	f.Add([]byte("words\n1|1|unix|/a/b|frames|\n"))
	f.Add([]byte("1|2|unix|a|grpc\n"))
	f.Add([]byte("||||\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHandshake(b, "/dir")
		if h != nil && (err != nil || !filepath.IsAbs(h.address)) {
			t.Errorf("%q: %v, %v", b, h, err)
		}
	})
}

func FuzzLedger(f *testing.F) {
	f.Add([]byte(`{"version":1,"next":3,"generations":[{"plugin":"p","number":1,"state":"serving","pid":3}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := parseLedger(b); err == nil {
			for _, r := range l.Plugins {
				if states[r.State] == 0 || r.PID < 0 {
					t.Errorf("%q: %v", b, r)
				}
			}
		}
	})
}
