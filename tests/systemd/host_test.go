package systemd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience bounds every wait for something that takes milliseconds.
const patience = 30 * time.Second

var daemons = []string{"retinue-configd", "retinue-statsd", "retinue-restartd"}

// configPath is the installed configuration.
const configPath = "/etc/retinue/retinue.hcl"

// configuration serves port 80, so that a daemon without any capability is seen to serve a privileged port.
func configuration(upstream, rest string) string {
	return `
runtime { probation = "200ms" }
listener "web" {
  address = ["127.0.0.1:80"]
  http {
    access_log = access_log.main
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = ["` + upstream + `"] }
access_log "main" { path = "/var/log/retinue/access.log" }
` + rest
}

// command runs a program and returns what it printed and its exit status.
func command(name string, args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil && c.ProcessState == nil {
		return err.Error(), -1
	}
	return out.String(), c.ProcessState.ExitCode()
}

// must runs a program that has to succeed.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, status := command(name, args...)
	if status != 0 {
		journal, _ := command("journalctl", "-b", "--no-pager", "-n", "40", "-u", "retinue*")
		t.Fatalf("%s %s: exit status %d\n%s\njournal:\n%s", name, strings.Join(args, " "), status, out, journal)
	}
	return out
}

// install puts the package on the machine and replaces the quickstart by the tests' configuration.
func install() error {
	if out, status := command("dpkg", "-i", os.Getenv("RETINUE_DEB")); status != 0 {
		return fmt.Errorf("dpkg -i: exit status %d\n%s", status, out)
	}
	return nil
}

// property is one property of a unit.
func property(t *testing.T, unit, name string) string {
	t.Helper()
	return strings.TrimSpace(must(t, "systemctl", "show", "--value", "--property", name, unit))
}

func mainPID(t *testing.T, unit string) int {
	t.Helper()
	pid, err := strconv.Atoi(property(t, unit, "MainPID"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// generations are the numbers of the units retinue-proxyd@N that run.
func generations(t *testing.T) []string { return instances(t, "retinue-proxyd@") }

// instances are those of a template that run.
func instances(t *testing.T, template string) []string {
	t.Helper()
	var out []string
	for _, line := range strings.Split(must(t, "systemctl", "list-units", "--plain", "--no-legend", "--state=active", template+"*.service"), "\n") {
		unit, _, _ := strings.Cut(line, " ")
		if n, ok := strings.CutPrefix(strings.TrimSuffix(unit, ".service"), template); ok {
			out = append(out, n)
		}
	}
	return out
}

// await polls until f says yes.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	journal, _ := command("journalctl", "-b", "--no-pager", "-n", "60", "-u", "retinue*")
	t.Fatalf("waited %s for %s\n%s", patience, what, journal)
}

// app is the upstream of the tests, one for all of them.
var app = sync.OnceValues(func() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Stamp", r.Header.Get("X-Stamp"))
		io.WriteString(w, "hello")
	}))
	return l.Addr().String(), nil
})

// configure writes the configuration and applies it.
func configure(t *testing.T, rest string) {
	t.Helper()
	upstream, err := app()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(configPath, []byte(configuration(upstream, rest)), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "systemctl", "reload", "retinue-configd")
}

// load is clients that ask all the time, one on a connection that it keeps and one on a new connection a request.
type load struct {
	stop     context.CancelFunc
	done     sync.WaitGroup
	requests atomic.Int64
	failed   atomic.Int64
	first    atomic.Value // string
}

func startLoad(t *testing.T) *load { return startLoadOn(t, "http://127.0.0.1/") }

func startLoadOn(t *testing.T, url string) *load {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	l := &load{stop: stop}
	for _, keep := range []bool{true, false} {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: !keep}, Timeout: patience}
		l.done.Go(func() {
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				l.requests.Add(1)
				if err := getFrom(client, url); err != nil {
					l.failed.Add(1)
					l.first.CompareAndSwap(nil, err.Error())
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	t.Cleanup(l.end)
	await(t, "the first answers", func() bool { return l.requests.Load() > 20 })
	return l
}

func get(client *http.Client) error { return getFrom(client, "http://127.0.0.1/") }

func getFrom(client *http.Client, url string) error {
	r, err := client.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && (r.StatusCode != 200 || string(body) != "hello") {
		err = fmt.Errorf("status %d, body %q", r.StatusCode, body)
	}
	return err
}

func (l *load) end() {
	l.stop()
	l.done.Wait()
}

// none fails the test when a request failed.
func (l *load) none(t *testing.T) {
	t.Helper()
	l.end()
	t.Logf("%d requests, %d failed", l.requests.Load(), l.failed.Load())
	if l.failed.Load() > 0 {
		t.Errorf("first failure: %s", l.first.Load())
	}
}
