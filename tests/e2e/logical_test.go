package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// logicalCluster is a cluster whose only endpoint is the name app.test.
func logicalCluster(name, port string, resolver *names, more string) string {
	return fmt.Sprintf(`
cluster %q {
  discovery "dns" {
    name      = "app.test:%s"
    logical   = true
    min_ttl   = "1s"
    resolvers = [%q]
  }
  %s
}
`, name, port, resolver.address, more)
}

// door is a server that says its name and the port of the peer, so that connections are told apart.
type door struct {
	name, address, port string
	held, let           chan struct{} // a request for /hold is told on the first, and answered after the second
}

// newDoor opens one that speaks HTTP/1 and HTTP/2 in the clear.
func newDoor(t *testing.T, name, address string) *door {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("%s: %v", address, err)
	}
	d := &door{name: name, address: l.Addr().String(), held: make(chan struct{}), let: make(chan struct{})}
	_, d.port, _ = net.SplitHostPort(d.address)
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hold":
			d.held <- struct{}{}
			<-d.let
		case "/once":
			w.Header().Set("Connection", "close")
		case "/fail":
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, port, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = io.WriteString(w, name+" "+port)
	})}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return d
}

// TestLogicalAddressesRace: the first address of a name fails, or is silent; no client notices, by no protocol.
func TestLogicalAddressesRace(t *testing.T) {
	good := newDoor(t, "good", "127.0.0.1:0")
	blackHole(t, "127.0.0.3:"+good.port)
	ways := map[string][]string{
		"refused": {"127.0.0.2", "127.0.0.1"},
		"silent":  {"127.0.0.3", "127.0.0.1"},
		"both":    {"127.0.0.3", "127.0.0.2", "127.0.0.1"},
	}
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		_ = l.Close()
		ways["family"] = []string{"127.0.0.1", "::1"} // IPv6 goes first, wherever it stands
	}
	log := filepath.Join(t.TempDir(), "access.log")
	clusters, routes, listeners := "", "", ""
	for way, addresses := range ways {
		resolver := newNames(t)
		resolver.set(addresses...)
		for _, protocol := range []string{"http1", "http2"} {
			name := way + "_" + protocol
			clusters += logicalCluster(name, good.port, resolver, fmt.Sprintf("protocol = %q\n  max_requests_per_connection = 1", protocol))
			routes += fmt.Sprintf("route \"/%s\" { cluster = cluster.%s }\n", name, name)
		}
		name := way + "_tcp"
		clusters += logicalCluster(name, good.port, resolver, "")
		listeners += fmt.Sprintf(`
listener %q {
  address = ["127.0.0.1:0"]
  tcp {
    cluster    = cluster.%s
    access_log = access_log.all
  }
}
`, name, name)
	}
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    virtual_host "all" {
      domains = ["*"]
      %s
    }
  }
}
access_log "all" {
  path = %q
  json = {
    cluster = "%%UPSTREAM_CLUSTER%%"
    host    = "%%UPSTREAM_HOST%%"
    name    = "%%UPSTREAM_HOST_NAME%%"
    flags   = "%%RESPONSE_FLAGS%%"
  }
}
stats { listen = "off" }
`, routes, log)+listeners+clusters)
	const times = 3
	c := client(t)
	for way := range ways {
		for _, protocol := range []string{"http1", "http2", "tcp"} {
			name := way + "_" + protocol
			url := "http://" + s.Address("web") + "/" + name
			if protocol == "tcp" {
				url = "http://" + s.Address(name) + "/"
			}
			for range times {
				r, err := c.Get(url)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				body, _ := io.ReadAll(r.Body)
				_ = r.Body.Close()
				c.CloseIdleConnections() // the next one is another connection of TCP
				if r.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), "good ") {
					t.Errorf("%s: %d %s", name, r.StatusCode, body)
				}
			}
			s.AwaitStat(times, "retinue_cluster_upstream_cx_total", "cluster="+name)
			for _, zero := range []string{"connect_fail", "connect_timeout"} {
				if n := s.Stat("retinue_cluster_upstream_cx_"+zero, "cluster="+name); n != 0 {
					t.Errorf("%s: %v %s", name, n, zero)
				}
			}
		}
	}
	s.Eventually("every request is logged with the address that answered", func() error {
		text, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		lines := slices.Collect(strings.Lines(string(text)))
		if len(lines) != times*3*len(ways) {
			return fmt.Errorf("%d lines", len(lines))
		}
		for _, line := range lines {
			var got struct{ Cluster, Host, Name, Flags string }
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				return err
			}
			if got.Host != good.address || got.Name != "app.test:"+good.port || got.Flags != "" {
				t.Errorf("logged %s", line)
			}
		}
		return nil
	})
}

// TestLogicalIdentity: connections that exist, drains and verdicts stay when the addresses of a name change.
func TestLogicalIdentity(t *testing.T) {
	one := newDoor(t, "one", "127.0.0.1:0")
	two := newDoor(t, "two", "127.0.0.2:"+one.port)
	named := "app.test:" + one.port
	resolvers := map[string]*names{}
	clusters, routes := "", ""
	for name, more := range map[string]string{
		"app": "",
		"bad": "outlier_detection {\n consecutive_5xx = 2\n base_ejection = \"1h\"\n max_ejection = \"1h\"\n }",
		"ill": "health_check \"tcp\" {\n interval = \"50ms\"\n unhealthy = 1\n }",
	} {
		resolvers[name] = newNames(t)
		clusters += logicalCluster(name, one.port, resolvers[name], more)
		routes += fmt.Sprintf("route \"/%s/*\" {\n cluster = cluster.%s\n rewrite { prefix = \"/\" }\n }\n", name, name)
	}
	resolvers["app"].set("127.0.0.1")
	resolvers["bad"].set("127.0.0.1")
	resolvers["ill"].set("127.0.0.4") // nobody is there
	log := filepath.Join(t.TempDir(), "tunnels.log")
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      %s
    }
  }
}
listener "tunnel" {
  address = ["127.0.0.1:0"]
  tcp {
    cluster    = cluster.app
    access_log = access_log.tunnels
  }
}
access_log "tunnels" {
  path   = %q
  format = "%%UPSTREAM_HOST%% %%UPSTREAM_HOST_NAME%%"
}
stats { listen = "off" }
`, routes, log)+clusters)
	web, tunnel, c := "http://"+s.Address("web"), "http://"+s.Address("tunnel"), client(t)
	ask := func(url string) (int, string) {
		t.Helper()
		r, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(body)
	}
	get := func(path string) (int, string) { t.Helper(); return ask(web + path) }
	status := func(want string) {
		t.Helper()
		s.Eventually("status says "+want, func() error {
			if out, _ := s.Retinue("status"); !strings.Contains(out, want) {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	}

	// A connection to an address that is in the answer no more goes on.
	_, kept := get("/app/")
	_, tunnelled := ask(tunnel)
	if !strings.HasPrefix(kept, "one ") || !strings.HasPrefix(tunnelled, "one ") {
		t.Fatalf("answered by %q, in the tunnel %q", kept, tunnelled)
	}
	held := make(chan string)
	go func() {
		_, body := get("/app/hold")
		held <- body
	}()
	<-one.held
	resolvers["app"].set("127.0.0.2")
	s.Eventually("a new connection goes to the new address", func() error {
		if _, body := get("/app/once"); !strings.HasPrefix(body, "two ") {
			return fmt.Errorf("answered by %q", body)
		}
		return nil
	})
	close(one.let)
	if body := <-held; body != kept {
		t.Errorf("the request that was held is answered by %q, want %q", body, kept)
	}
	if _, body := get("/app/"); body != kept {
		t.Errorf("after the change %q answers, want %q: its connection is kept", body, kept)
	}
	s.Eventually("the new address is kept for a start without configd", func() error {
		raw, err := os.ReadFile(filepath.Join(s.Dir, "state", "proxyd", "last-good.pb"))
		if err == nil && !strings.Contains(string(raw), two.address) {
			err = fmt.Errorf("%s is not in it", two.address)
		}
		return err
	})

	// A drain is of the name.
	command := func(want int, says string, args ...string) {
		t.Helper()
		if out, code := s.Retinue(args...); code != want || !strings.Contains(out, says) {
			t.Errorf("retinue %s: exit %d: %s", strings.Join(args, " "), code, out)
		}
	}
	command(1, "it has "+named, "endpoint", "drain", "app", two.address)
	command(0, "drained\n", "endpoint", "drain", "app", named)
	status(named + " drained (" + two.address + ")")
	resolvers["app"].set("127.0.0.1", "127.0.0.2")
	status(named + " drained (" + one.address + " " + two.address + ")")
	if code, body := get("/app/"); code != http.StatusServiceUnavailable {
		t.Errorf("drained, and elsewhere: %d %s", code, body)
	}
	command(0, "", "upgrade")
	if code, body := get("/app/"); code != http.StatusServiceUnavailable {
		t.Errorf("drained, and in a new generation: %d %s", code, body)
	}
	if _, body := ask(tunnel); body != tunnelled {
		t.Errorf("in the tunnel that was there before the changes %q answers, want %q", body, tunnelled)
	}
	c.CloseIdleConnections()
	s.Eventually("the tunnel is logged with the address that it went to", func() error {
		text, err := os.ReadFile(log)
		if want := one.address + " " + named + "\n"; err == nil && string(text) != want {
			err = fmt.Errorf("%q, want %q", text, want)
		}
		return err
	})
	command(0, "undrained\n", "endpoint", "undrain", "app", named)
	s.Eventually("it serves again", func() error {
		if code, body := get("/app/"); code != http.StatusOK || !strings.HasPrefix(body, "one ") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})

	// So is an ejection.
	get("/bad/fail")
	get("/bad/fail")
	status(named + " ejected (" + one.address + ")")
	resolvers["bad"].set("127.0.0.2")
	status(named + " ejected (" + two.address + ")")

	// And a verdict, until a check says otherwise.
	status(named + " unhealthy (127.0.0.4:" + one.port + ")")
	resolvers["ill"].set("127.0.0.5")
	status(named + " unhealthy (127.0.0.5:" + one.port + ")")
	resolvers["ill"].set("127.0.0.5", "127.0.0.1")
	s.AwaitStat(1, "retinue_cluster_membership_healthy", "cluster=ill")
	if code, body := get("/ill/"); code != http.StatusOK || !strings.HasPrefix(body, "one ") {
		t.Errorf("well again: %d %s", code, body)
	}
}

// TestLogicalTLS: where the configuration names no server, the certificate is for the name that is looked up, and the name is sent.
func TestLogicalTLS(t *testing.T) {
	ca := certs.New(t, "servers")
	sessions := 0
	for _, c := range []struct {
		name, certificate, more string
		status                  int
		sni                     string
	}{
		{"the name", "app.test", "", 200, "app.test"},
		{"the address alone", "127.0.0.1", "", 503, ""},
		{"another name", "other.test", "", 503, ""},
		{"another name that is written", "other.test", `sni = "other.test"`, 200, "other.test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := secureApplication(t, ca.Issue(c.certificate), &tls.Config{}, &sessions)
			_, port, _ := net.SplitHostPort(server)
			resolver := newNames(t)
			resolver.set("127.0.0.2", "127.0.0.1")
			s := suite.Start(t, `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
stats { listen = "off" }
`+logicalCluster("app", port, resolver, fmt.Sprintf("tls {\n ca_file = %q\n %s\n }", ca.File, c.more)))
			r, err := client(t).Get("http://" + s.Address("web") + "/")
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Body.Close()
			if r.StatusCode != c.status || r.Header.Get("X-SNI") != c.sni {
				t.Errorf("%d, asked for %q; want %d, %q", r.StatusCode, r.Header.Get("X-SNI"), c.status, c.sni)
			}
		})
	}
}
