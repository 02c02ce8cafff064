package restart

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

//go:embed testdata/bad.go.txt
var badSource []byte

//go:embed testdata/pause.go.txt
var pauseSource []byte

// edits are what the test build's source has before and after a line that is there.
var edits = []struct{ file, line, before, after string }{
	{"internal/filter/router.go", "func (r *Router) DecodeHeaders(s *stream.Stream, end bool) {\n", "", "\tif bad(s) {\n\t\treturn\n\t}\n"},
	{"main.go", "\t\t\t\treturn false, nil\n\t\t\t}\n", "", "\t\t\tcontrol.Pause(\"preflight\")\n"},
	{"internal/control/server.go", "func New(env *daemon.Env, generation uint64) (*Server, error) {\n", "", "\tPause(\"start\")\n"},
	{"internal/control/restart.go", "\tif err := stream.Send(&restartv1.AttachRequest{Message: &restartv1.AttachRequest_Ready{", "\tPause(\"warm\")\n", ""},
	{"internal/control/drain.go", "func (s *Server) serve(part restartv1.Part) error {\n", "", "\tPause(\"serve\")\n"},
	// In the last batch alone: what those before it moved is in the taker already, and what would follow them is not.
	{"internal/control/give.go", "\t\tif err := giver.Give(p, ", `
		open := 0
		g.on(l, func() {
			for _, b := range l.listeners {
				open += b.open()
			}
		})
		giver.Probe = func(s handoff.Step) {
			if len(p.Connections) == open {
				Pause("giver-" + string(s))
			}
		}
`, ""},
	{
		"internal/control/take.go", "\ttaker := &handoff.Taker{Generation: s.generation, Adopt: s.adopt, Log: s.env.Log}\n",
		"", "\ttaker.Probe = func(s handoff.Step) { Pause(\"taker-\" + string(s)) }\n",
	},
}

// testBuild is a proxyd of this tree that calls testdata/bad.go.txt in its router and testdata/pause.go.txt in the steps of its start. It
// is built once, into a directory that the end of the tests removes.
var testBuild = sync.OnceValues(func() (string, error) {
	module, err := filepath.Abs("../../proxyd")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "test-proxyd")
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	put := func(file string, content []byte) error {
		at := filepath.Join(dir, strings.ReplaceAll(file, "/", "-"))
		replace[filepath.Join(module, file)] = at
		return os.WriteFile(at, content, 0o644)
	}
	for _, e := range edits {
		source, err := os.ReadFile(filepath.Join(module, e.file))
		if err != nil {
			return dir, err
		}
		head, tail, found := strings.Cut(string(source), e.line)
		if !found {
			return dir, fmt.Errorf("%s has no %q any more: the test build must learn what is there now", e.file, e.line)
		}
		if err := put(e.file, []byte(head+e.before+e.line+e.after+tail)); err != nil {
			return dir, err
		}
	}
	if err := errors.Join(put("internal/filter/bad.go", badSource), put("internal/control/pause.go", pauseSource)); err != nil {
		return dir, err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return dir, err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644); err != nil {
		return dir, err
	}
	build := exec.Command("go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"), "-o", filepath.Join(dir, "proxyd"), ".")
	build.Dir = module
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// builtForTests answers the path of the test build.
func builtForTests(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go: the test build cannot be made")
	}
	dir, err := testBuild()
	removeAtEnd = dir
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "proxyd")
}

// removeAtEnd is the directory of the test build.
var removeAtEnd string

func TestMain(m *testing.M) {
	code := m.Run()
	if removeAtEnd != "" {
		os.RemoveAll(removeAtEnd)
	}
	os.Exit(code)
}

const badConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" {
  endpoints = [%q]
  circuit_breaker { max_connections = 10000 }
}
stats { listen = "off" }
`

// strangers make a request on a connection of their own again and again: what they are answered does not matter, but nobody may be
// refused a connection. The returned function ends them and tells how many requests failed of how many.
func strangers(t *testing.T, address string) (end func() (failed, all int64)) {
	var clients sync.WaitGroup
	var failed, all atomic.Int64
	stop := make(chan struct{})
	for range 3 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.DialTimeout("tcp", address, suite.Patience)
				if err != nil {
					t.Errorf("a connection is refused: %v", err)
					return
				}
				c.Close()
				if _, _, err := request(address, "GET /", nil); err != nil {
					failed.Add(1)
				}
				all.Add(1)
			}
		})
	}
	return func() (int64, int64) {
		close(stop)
		clients.Wait()
		return failed.Load(), all.Load()
	}
}

// TestBadBuildsAreTakenBack upgrades to a proxyd that is bad on purpose. Whatever it does, the generation before serves again by
// itself, nobody is refused a connection meanwhile, and afterwards nothing fails.
func TestBadBuildsAreTakenBack(t *testing.T) {
	binary := builtForTests(t)
	for _, c := range []struct {
		name, does string
		args       []string
		says       string
	}{
		{"a crash in the probation", "crash", []string{"--probation", "1h"}, "generation 2 ended in its probation: exit status 2; generation 1 serves again"},
		{"a loop that stands still", "hang", []string{"--probation", "1h"}, "stood still for 5s; generation 1 serves again"},
		{"errors of its own", "errors", []string{"--probation", "1h"}, "requests by errors of its own making in its probation"},
		{"a canary that crashes", "crash", []string{"--canary", "50", "--canary-time", "1h"}, "generation 2 ended as a canary: exit status 2; generation 1 serves again"},
		{"a canary with errors of its own", "errors", []string{"--canary", "50", "--canary-time", "1h"}, "requests by errors of its own making in its canary, generation 1 0 of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := suite.New(t)
			s.Env = []string{"RETINUE_TEST_BAD=" + c.does}
			s.Write(fmt.Sprintf(badConfig, suite.Upstream(t, app)))
			s.Run()
			address, old := s.Address("web"), s.PID("proxyd")
			end := strangers(t, address)
			out, code := s.Retinue(append([]string{"upgrade", "--binary", binary}, c.args...)...)
			if code != 1 || !strings.Contains(out, c.says) {
				t.Errorf("exit %d: %s", code, out)
			}
			failed, all := end()
			t.Logf("%d of %d requests failed: %s", failed, all, out)
			if pid := s.PID("proxyd"); pid != old {
				t.Errorf("process %d serves, not the old one %d", pid, old)
			}
			for range 50 {
				if _, _, err := request(address, "GET /", nil); err != nil {
					t.Fatalf("after the rollback: %v", err)
				}
			}
			if out, code := s.Retinue("status"); code != 0 || !strings.Contains(out, "history ") || !strings.Contains(out, c.says) {
				t.Errorf("status: exit %d: %s", code, out)
			}
		})
	}
}

// TestOutageRollsNothingBack: the upstream ends in the probation, every request fails, and none of that is the new binary's fault.
func TestOutageRollsNothingBack(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				app(c)
			}()
		}
	}()
	s := suite.Start(t, fmt.Sprintf(badConfig, l.Addr()))
	address, old := s.Address("web"), s.PID("proxyd")
	upgrade := begin(s, "upgrade", "--probation", "4s")
	s.Eventually("the new generation is on probation", func() error {
		if pid := s.PID("proxyd"); pid == 0 || pid == old {
			return fmt.Errorf("process %d serves", pid)
		}
		return nil
	})
	l.Close()
	failed := 0
	for end := time.Now().Add(suite.Patience); time.Now().Before(end); {
		select {
		case e := <-upgrade:
			if e.code != 0 {
				t.Errorf("exit %d: %s", e.code, e.out)
			}
			t.Logf("%d requests failed in the probation", failed)
			if failed < 20 {
				t.Errorf("%d requests failed: no outage was seen", failed)
			}
			return
		default:
		}
		if response, _, err := request(address, "GET /", nil); err != nil && response != nil && response.StatusCode == 503 {
			failed++
		}
	}
	t.Error("the probation did not end")
}

// TestWhatIsNoProxydIsNotStarted: preflight refuses it, and nothing has changed.
func TestWhatIsNoProxydIsNotStarted(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(badConfig, suite.Upstream(t, app)))
	old := s.PID("proxyd")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for binary, says := range map[string]string{
		suite.Binary(t, "statsd"): "--preflight", "/bin/sleep": "--preflight", text: "exec format error",
	} {
		if out, code := s.Retinue("upgrade", "--binary", binary); code != 1 || !strings.Contains(out, says) {
			t.Errorf("%s: exit %d: %s", binary, code, out)
		}
	}
	if pid := s.PID("proxyd"); pid != old {
		t.Errorf("process %d serves, not the old one %d", pid, old)
	}
}
