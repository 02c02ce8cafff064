package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"retinue.dev/tests/suite"
)

const discoveryConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/file" { cluster = cluster.file }
      route "/dns" { cluster = cluster.dns }
      route "/*" { cluster = cluster.fixed }
    }
  }
}
cluster "file" {
  discovery "file" { path = %q }
}
cluster "dns" {
  discovery "dns" {
    name      = "app.test:%s"
    record    = "a"
    min_ttl   = "1s"
    resolvers = [%q]
  }
}
cluster "fixed" { endpoints = [%q] }
stats { listen = "127.0.0.1:0" }
`

// names is a name server that answers every question for A or AAAA records with its addresses of that family, or fails.
type names struct {
	address string
	mu      sync.Mutex
	answers []netip.Addr // none: SERVFAIL
}

func newNames(t *testing.T) *names {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	n := &names{address: c.LocalAddr().String()}
	go func() {
		buffer := make([]byte, 2048)
		for {
			size, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(n.reply(buffer[:size]), from)
		}
	}()
	return n
}

// reply answers with the question and records of 1 s (RFC 1035 section 4).
func (n *names) reply(query []byte) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5
	reply := append([]byte(nil), query[:end]...)
	reply[2], reply[3] = 0x81, 0x80
	binary.BigEndian.PutUint16(reply[6:], 0)
	binary.BigEndian.PutUint16(reply[10:], 0)
	if len(n.answers) == 0 {
		reply[3] |= 2
		return reply
	}
	records := uint16(0)
	for _, a := range n.answers {
		kind, octets := byte(1), a.AsSlice()
		if a.Is6() {
			kind = 28
		}
		if query[end-3] == kind {
			records++
			reply = append(reply, 0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 1, 0, byte(len(octets)))
			reply = append(reply, octets...)
		}
	}
	binary.BigEndian.PutUint16(reply[6:], records)
	return reply
}

func (n *names) set(answers ...string) {
	parsed := make([]netip.Addr, 0, len(answers))
	for _, a := range answers {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers = parsed
}

// namedServer answers with its name.
func namedServer(t *testing.T, name, address string, connections *atomic.Int64) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("%s: %v", address, err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew && connections != nil {
				connections.Add(1)
			}
		},
	}}
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().String()
}

// looks are the counters of discovery, by cluster and name.
func looks(c *http.Client, stats string) (map[string]map[string]float64, error) {
	r, err := c.Get("http://" + stats + "/metrics?match=cluster_update_")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	out := map[string]map[string]float64{}
	for _, m := range looksLine.FindAllStringSubmatch(string(b), -1) {
		if out[m[2]] == nil {
			out[m[2]] = map[string]float64{}
		}
		out[m[2]][strings.TrimSuffix(m[1], "_total")], _ = strconv.ParseFloat(m[3], 64)
	}
	return out, err
}

var looksLine = regexp.MustCompile(`(?m)^retinue_cluster_update_(\w+)\{cluster="(\w+)"\} (\S+)$`)

// TestDiscovery has endpoints that come and go, by file and by name, while configuration and other pools stay.
func TestDiscovery(t *testing.T) {
	var fixedConnections atomic.Int64
	fixed := namedServer(t, "fixed", "127.0.0.1:0", &fixedConnections)
	one := namedServer(t, "one", "127.0.0.1:0", nil)
	_, port, _ := net.SplitHostPort(one)
	two := namedServer(t, "two", "127.0.0.2:"+port, nil)
	resolver := newNames(t)
	resolver.set("127.0.0.1")
	file := filepath.Join(t.TempDir(), "endpoints")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	put(one + "\n")
	s := suite.Start(t, fmt.Sprintf(discoveryConfig, file, port, resolver.address, fixed))
	base := "http://" + s.Address("web")
	c := client(t)
	get := func(path string) string {
		t.Helper()
		r, err := c.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return string(b)
	}
	becomes := func(path, want string) {
		t.Helper()
		s.Eventually(path+" is answered by "+want, func() error {
			if got := get(path); got != want {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
	}
	// The first request has endpoints: the snapshot waited for them.
	for path, want := range map[string]string{"/file": "one", "/dns": "one", "/": "fixed"} {
		if got := get(path); got != want {
			t.Errorf("the first answer of %s: %q, want %q", path, got, want)
		}
	}
	snapshot := func() string {
		out, _ := s.Retinue("history")
		return strings.TrimSpace(out)
	}
	before := snapshot()

	put(two + "\n")
	becomes("/file", "two")
	resolver.set("127.0.0.2")
	becomes("/dns", "two")

	// What fails changes nothing, and is told.
	put("nonsense\n")
	resolver.set()
	s.Eventually("status tells of both failures", func() error {
		out, _ := s.Retinue("status")
		for _, name := range []string{"cluster file: endpoints are not found", "cluster dns: endpoints are not found"} {
			if !strings.Contains(out, name) {
				return fmt.Errorf("no %q in %s", name, out)
			}
		}
		return nil
	})
	for _, path := range []string{"/file", "/dns"} {
		if got := get(path); got != "two" {
			t.Errorf("%s after a failed look: %q", path, got)
		}
	}
	s.Eventually("the looks are counted", func() error {
		counted, err := looks(c, statsAddress(s))
		if err != nil {
			return err
		}
		for _, name := range []string{"file", "dns"} {
			n := counted[name]
			if n["success"] < 2 || n["failure"] == 0 || n["success_unix_time_seconds"] == 0 || n["attempt"] != n["success"]+n["failure"]+n["empty"] {
				return fmt.Errorf("cluster %s: %v", name, n)
			}
		}
		if counted["file"]["no_rebuild"] != 0 || counted["fixed"] != nil {
			return fmt.Errorf("%v", counted)
		}
		return nil
	})

	// A configd that knows nothing takes nothing away, and a generation that starts meanwhile has what was found last.
	s.Kill("configd")
	s.Eventually("configd answers again", func() error {
		if out, code := s.Retinue("history"); code != 0 {
			return fmt.Errorf("exit %d: %s", code, out)
		}
		return nil
	})
	if got := get("/dns"); got != "two" {
		t.Errorf("after configd's restart: %q", got)
	}
	s.Eventually("found endpoints are kept", func() error {
		raw, err := os.ReadFile(filepath.Join(s.Dir, "state", "proxyd", "last-good.pb"))
		if err == nil && !strings.Contains(string(raw), two) {
			err = fmt.Errorf("%s is not in it", two)
		}
		return err
	})
	if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
		t.Fatalf("upgrade: exit %d: %s", code, out)
	}
	c.CloseIdleConnections()
	for _, path := range []string{"/file", "/dns"} {
		if got := get(path); got != "two" {
			t.Errorf("%s of a new generation: %q", path, got)
		}
	}
	get("/") // on a connection of the new generation
	if after := snapshot(); after != before {
		t.Errorf("the history changed with endpoints:\n%s\nwas:\n%s", after, before)
	}
	opened := fixedConnections.Load()
	resolver.set("127.0.0.1")
	put(one + "\n")
	becomes("/dns", "one")
	becomes("/file", "one")
	get("/")
	if n := fixedConnections.Load(); n != opened {
		t.Errorf("the pool of another cluster opened %d connections", n-opened)
	}
}
