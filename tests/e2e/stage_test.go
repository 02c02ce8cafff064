package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// stage is a suite between a client that speaks bytes and an upstream that follows a script, with an access log that is read
// back: what was really on the wire, on both sides, and what the log says of it.
type stage struct {
	*suite.Suite
	t       *testing.T
	log     string // path of the access log
	scripts *upstreamScripts
}

// logged are the fields of the stage's access log.
const logged = `
access_log "all" {
  path = %q
  json = {
    client  = "%%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%%"
    method  = "%%REQ(:METHOD)%%"
    path    = "%%REQ(:PATH)%%"
    status  = "%%RESPONSE_CODE%%"
    flags   = "%%RESPONSE_FLAGS%%"
    details = "%%RESPONSE_CODE_DETAILS%%"
    sent    = "%%BYTES_SENT%%"
    got     = "%%BYTES_RECEIVED%%"
    cluster = "%%UPSTREAM_CLUSTER%%"
    host    = "%%UPSTREAM_HOST%%"
    route   = "%%ROUTE_NAME%%"
  }
}
stats { listen = "off" }
runtime { workers = 2 }
`

// newStage runs a configuration in which APP stands for the address of the scripted upstream; access_log.all is there.
func newStage(t *testing.T, hcl string) *stage {
	t.Helper()
	st := &stage{t: t, log: filepath.Join(t.TempDir(), "access.log"), scripts: &upstreamScripts{byPath: map[string]script{}}}
	app := suite.Upstream(t, st.scripts.serve)
	st.Suite = suite.Start(t, strings.ReplaceAll(hcl, "APP", app)+fmt.Sprintf(logged, st.log))
	return st
}

// script answers one request as the upstream. keep says that the connection goes on.
type script func(c *upstreamConn) (keep bool)

// upstreamScripts are the scripts of an upstream by the path that a request has there.
type upstreamScripts struct {
	mu     sync.Mutex
	byPath map[string]script
}

func (u *upstreamScripts) set(path string, s script) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.byPath[path] = s
}

// upstreamConn is a request at the upstream.
type upstreamConn struct {
	net.Conn
	reader  *bufio.Reader
	request *http.Request
	raw     *bytes.Buffer // all that was read
}

// whole reads the request to its end.
func (c *upstreamConn) whole() string {
	body, _ := io.ReadAll(c.request.Body)
	return string(body)
}

func (c *upstreamConn) says(text string) { _, _ = io.WriteString(c.Conn, text) }

// reset ends the connection by RST.
func (c *upstreamConn) reset() {
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	_ = c.Conn.Close()
}

func (u *upstreamScripts) serve(c net.Conn) {
	raw := &bytes.Buffer{}
	reader := bufio.NewReader(io.TeeReader(c, raw))
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		u.mu.Lock()
		s := u.byPath[request.URL.Path]
		u.mu.Unlock()
		if s == nil {
			s = answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
		if !s(&upstreamConn{c, reader, request, raw}) {
			return
		}
		_, _ = io.Copy(io.Discard, request.Body)
		raw.Reset()
	}
}

// answer reads the request, says text and keeps the connection; answerAndClose closes it.
func answer(text string) script {
	return func(c *upstreamConn) bool {
		c.whole()
		c.says(text)
		return true
	}
}

func answerAndClose(text string) script {
	return func(c *upstreamConn) bool {
		c.whole()
		c.says(text)
		return false
	}
}

// dial opens a raw connection to a listener.
func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	return c.(*net.TCPConn)
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("write: %v", err)
	}
}

var dateLine = regexp.MustCompile(`(?m)^Date: [^\r]*\r\n`)

// untilEnd reads to the end of the connection, without Date lines. ended is how: io.EOF for an orderly end.
func untilEnd(c net.Conn) (text string, ended error) {
	raw, err := io.ReadAll(c)
	if err == nil {
		err = io.EOF
	}
	return dateLine.ReplaceAllString(string(raw), ""), err
}

// reads reads exactly want.
func reads(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if err != nil || string(got) != want {
		t.Fatalf("read %q (%v), want %q", got[:n], err, want)
	}
}

// entry is a line of the access log.
type entry struct {
	Client, Method, Path, Flags, Details, Cluster, Host, Route string
	Status, Sent, Got                                          int
}

// entries are the lines of the access log about a connection. Every line must be whole.
func (st *stage) entries(client string) (list []entry) {
	raw, err := os.ReadFile(st.log)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(raw)) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			st.t.Errorf("a line of the access log is not whole: %q: %v", line, err)
			continue
		}
		if e.Client == client {
			list = append(list, e)
		}
	}
	return list
}

// entry waits for the one line about a connection.
func (st *stage) entry(t *testing.T, c net.Conn) entry {
	t.Helper()
	return st.nth(t, c, 0)
}

// nth waits for line n about a connection.
func (st *stage) nth(t *testing.T, c net.Conn, n int) entry {
	t.Helper()
	client := c.LocalAddr().String()
	for deadline := time.Now().Add(suite.Patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if list := st.entries(client); len(list) > n {
			return list[n]
		}
	}
	t.Fatalf("the access log says nothing about connection %s", client)
	return entry{}
}

// await waits for a channel to be closed.
func await(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(suite.Patience):
		t.Fatalf("%s: not within %v", what, suite.Patience)
	}
}
