package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"retinue.dev/tests/suite"
)

// TestAccessLogFormats has one request in every format that has a name, and in one of our own.
func TestAccessLogFormats(t *testing.T) {
	dir := t.TempDir()
	formats := map[string]string{
		"common":   `format = "common"`,
		"combined": `format = "combined"`,
		"json":     `format = "json"`,
		"text":     `format = "%PROTOCOL% %REQ(:METHOD)% %REQ(X-A?USER-AGENT):5% %RESP(X-TOLD)% %REQ(NOT-THERE)% %RESPONSE_CODE% %BYTES_RECEIVED%/%BYTES_SENT% %UPSTREAM_CLUSTER% %VIRTUAL_HOST_NAME% 100%%"`,
	}
	var logs, names strings.Builder
	for name, format := range formats {
		fmt.Fprintf(&logs, "access_log %q {\n  path = %q\n  %s\n}\n", name, filepath.Join(dir, name), format)
		fmt.Fprintf(&names, "access_log.%s, ", name)
	}
	app := suite.Upstream(t, (&upstreamScripts{byPath: map[string]script{"/p": answer("HTTP/1.1 201 Created\r\nX-Told: \"quoted\"\r\nContent-Length: 3\r\n\r\nabc")}}).serve)
	s := suite.Start(t, fmt.Sprintf(`
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = [%s]
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = [%q] }
stats { listen = "off" }
%s`, names.String(), app, logs.String()))
	c := dial(t, s.Address("web"))
	write(t, c, "POST /p?q=\"1\" HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: evil\"\\\x80agent\r\nReferer: r\r\nX-Request-Id: id\r\nContent-Length: 2\r\n\r\nhi")
	_, _ = untilEnd(c)
	line := func(name string) (text string) {
		s.Eventually("the line of "+name, func() error {
			raw, err := os.ReadFile(filepath.Join(dir, name))
			if text = string(raw); err == nil && !strings.HasSuffix(text, "\n") {
				err = errors.New("there is none")
			}
			return err
		})
		return text
	}
	for name, want := range map[string]string{
		"common":   `^127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "POST /p\?q=\S+ HTTP/1\.1" 201 3\n$`,
		"combined": `^127\.0\.0\.1 - - \[.*\] "POST /p\?q=\S+ HTTP/1\.1" 201 3 "r" "evil.*agent"\n$`,
		"text":     `^HTTP/1\.1 POST evil\S+ \S*quoted\S* - 201 2/3 app all 100%\n$`,
	} {
		if got := line(name); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: %q, want %s", name, got, want)
		}
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(line("json")), &fields); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"method": "POST", "path": `/p?q="1"`, "authority": "a", "protocol": "HTTP/1.1", "response_code": 201.0, "response_flags": nil, "response_code_details": "via_upstream",
		"bytes_received": 2.0, "bytes_sent": 3.0, "upstream_cluster": "app", "upstream_host": app, "route_name": "/*", "request_id": "id",
	} {
		if fields[name] != want {
			t.Errorf("json: %s is %v, want %v", name, fields[name], want)
		}
	}
	if agent, _ := fields["user_agent"].(string); !strings.HasPrefix(agent, `evil"\`) {
		t.Errorf("json: user_agent is %q", agent)
	}
}

// TestAccessLogRotation moves the file away again and again under load, and has it reopened by USR1: every request has one whole
// line, in one of the files. Both ways to say USR1 are used: to the supervisor, and to proxyd.
func TestAccessLogRotation(t *testing.T) {
	st := newStage(t, webConfig)
	base := "http://" + st.Address("web") + "/"
	var clients sync.WaitGroup
	const each = 400
	for i := range 4 {
		clients.Go(func() {
			c := client(t)
			for n := range each {
				r, err := c.Get(fmt.Sprintf("%s%d-%d", base, i, n))
				if err != nil {
					t.Error(err)
					return
				}
				r.Body.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		clients.Wait()
	}()
	moved := 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		st.Eventually("there is a file", func() error {
			_, err := os.Stat(st.log)
			if err != nil { // it is opened with its first line
				if r, err := http.Get(base + "opens"); err == nil {
					r.Body.Close()
				}
			}
			return err
		})
		if err := os.Rename(st.log, fmt.Sprintf("%s.%d", st.log, moved)); err != nil {
			t.Fatal(err)
		}
		if moved++; moved%2 == 0 {
			st.Signal(syscall.SIGUSR1)
		} else if err := syscall.Kill(st.PID("proxyd"), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]int{}
	st.Eventually("every request has its line", func() error {
		clear(seen)
		files, err := filepath.Glob(st.log + "*")
		if err != nil {
			return err
		}
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(raw)) {
				var e entry
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					return fmt.Errorf("%s: %q: %w", file, line, err)
				}
				seen[e.Path]++
			}
		}
		delete(seen, "/opens")
		if n := len(seen); n != 4*each {
			return fmt.Errorf("%d paths", n)
		}
		return nil
	})
	for path, n := range seen {
		if n != 1 {
			t.Errorf("%s has %d lines", path, n)
		}
	}
	if moved < 2 {
		t.Errorf("the file was moved %d times", moved)
	}
}
