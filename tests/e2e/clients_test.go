package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// dashboardConfig is a listener with TLS in front of the suite's own dashboard, and one of plain text.
const dashboardConfig = `
runtime { workers = 2 }
certificate "shop" {
  cert_file = %[1]q
  key_file  = %[2]q
}
listener "edge" {
  address = ["127.0.0.1:0"]
  tls { certificates = [certificate.shop] }
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/events" {
        cluster = cluster.dashboard
        timeout = "0"
      }
      route "/*" { cluster = cluster.dashboard }
    }
  }
}
listener "plain" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.dashboard }
    }
  }
}
cluster "dashboard" { endpoints = [%[3]q] }
stats { listen = "127.0.0.1:0" }
`

// dashboard is a suite whose dashboard is looked at through proxyd.
func dashboard(t *testing.T, pair *certs.Pair) *suite.Suite {
	t.Helper()
	s := suite.Start(t, fmt.Sprintf(dashboardConfig, pair.CertFile, pair.KeyFile, "127.0.0.1:1"))
	s.Write(fmt.Sprintf(dashboardConfig, pair.CertFile, pair.KeyFile, statsAddress(s)))
	if out, code := s.Retinue("reload"); code != 0 {
		t.Fatalf("reload: %s", out)
	}
	return s
}

// statsAddress is where statsd listens.
func statsAddress(s *suite.Suite) (address string) {
	listens := regexp.MustCompile(`metrics and dashboard.*?(127\.0\.0\.1:[1-9][0-9]*)`)
	s.Eventually("statsd says where the dashboard is", func() error {
		m := listens.FindStringSubmatch(s.Log())
		if m == nil {
			return errors.New("it does not")
		}
		address = m[1]
		return nil
	})
	return address
}

// program is the path of a client that the machine may have; without it the test is skipped.
func program(t *testing.T, name, from string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed (Debian: %s)", name, from)
	}
	return path
}

// run runs a client to its end.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), suite.Patience)
	defer cancel()
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, errs.Bytes())
	}
	return string(out)
}

// TestClients has clients that others have written look at the dashboard through proxyd, over TLS.
func TestClients(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("shop.test", "127.0.0.1")
	s := dashboard(t, pair)
	address := s.Address("edge")
	_, port, _ := strings.Cut(address, ":")
	t.Run("curl", func(t *testing.T) {
		curl := program(t, "curl", "curl")
		common := []string{"-sS", "--cacert", ca.File, "--resolve", "shop.test:" + port + ":127.0.0.1"}
		for _, x := range []struct{ args, protocol string }{
			{"--http1.1", "1.1"}, {"--http2", "2"}, {"--http2 --tls-max 1.2", "2"}, {"--http1.1 --tls-max 1.2", "1.1"},
		} {
			args := append(append(strings.Fields(x.args), common...), "-w", "\n%{http_version} %{response_code}", "https://shop.test:"+port+"/")
			page, told, _ := cutLast(run(t, curl, args...))
			if told != x.protocol+" 200" || !strings.Contains(page, "<title>Retinue</title>") {
				t.Errorf("%s: %q, %d bytes", x.args, told, len(page))
			}
		}
		page := run(t, curl, "-sS", "--http2-prior-knowledge", "-w", "\n%{http_version}", "http://"+s.Address("plain")+"/")
		if !strings.Contains(page, "<title>Retinue</title>") || !strings.HasSuffix(page, "\n2") {
			t.Errorf("prior knowledge: %.200q", page)
		}
		for _, protocol := range []string{"--http1.1", "--http2"} { // the stream never ends: curl is left to itself until its first event is here
			args := append([]string{protocol, "-N"}, common...)
			event := firstEvent(t, curl, append(args, "https://shop.test:"+port+"/events")...)
			if event.About.Series == 0 {
				t.Errorf("%s: the event tells nothing", protocol)
			}
		}
	})
	t.Run("nghttp", func(t *testing.T) {
		nghttp := program(t, "nghttp", "nghttp2-client")
		// Ten streams at a time, padded frames, a dependency tree that a server may ignore.
		out := run(t, nghttp, "--no-verify-peer", "-v", "-n", "-m", "10", "-b", "64", "https://"+address+"/", "https://"+address+"/version")
		if n := strings.Count(out, ":status: 200"); n != 20 || !strings.Contains(out, "The negotiated protocol: h2") {
			t.Errorf("%d of 20 answers:\n%s", n, out)
		}
		page := run(t, nghttp, "--no-verify-peer", "https://"+address+"/")
		if !strings.Contains(page, "<title>Retinue</title>") || !strings.Contains(page, "</html>") {
			t.Errorf("the page: %.200q", page)
		}
	})
	t.Run("Chromium", func(t *testing.T) {
		// The key is trusted, and no other: the page is one whose connection has been verified.
		leaf, err := x509.ParseCertificate(pair.TLS.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		b := browse(t, program(t, "chromium", "chromium"), "--ignore-certificate-errors-spki-list="+base64.StdEncoding.EncodeToString(sum[:]))
		b.open("https://" + address + "/")
		// The page says "serving" when its event stream has told it something.
		s.Eventually("the dashboard lives", func() error {
			if state := b.evaluate(`document.getElementById("state")?.textContent`); state != "serving" {
				return fmt.Errorf("it says %q", state)
			}
			return nil
		})
		if protocol := b.evaluate(`performance.getEntriesByType("navigation")[0].nextHopProtocol`); protocol != "h2" {
			t.Errorf("the page came over %q", protocol)
		}
		s.Eventually("the dashboard shows its own cluster", func() error {
			if shown := b.evaluate(`document.getElementById("clusters").textContent`); !strings.HasPrefix(shown, "dashboard") {
				return fmt.Errorf("the table of clusters shows %q", shown)
			}
			return nil
		})
	})
	if n := s.Stat("retinue_http_downstream_cx_protocol_error", "listener=edge"); n != 0 {
		t.Errorf("%v connections were at fault", n)
	}
}

func cutLast(text string) (before, after string, found bool) {
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		return text[:i], text[i+1:], true
	}
	return text, "", false
}

// event is what the test looks at of the dashboard's.
type event struct{ About struct{ Series int } }

// firstEvent is the first event that a client writes; the client is ended then.
func firstEvent(t *testing.T, name string, args ...string) (e event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), suite.Patience)
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	for r := bufio.NewReader(out); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: no event: %v", cmd, err)
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			return e
		}
	}
}

// browser is a headless Chromium that is driven by its pipe: JSON messages that end with a zero byte (Chrome DevTools Protocol).
type browser struct {
	t       *testing.T
	to      io.Writer
	from    *bufio.Reader
	number  int
	session string
}

func browse(t *testing.T, path string, more ...string) *browser {
	t.Helper()
	theirIn, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 3*suite.Patience)
	cmd := exec.CommandContext(ctx, path, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir(), "--remote-debugging-pipe", "about:blank",
	}, more...)...)
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &browser{t: t, to: to, from: bufio.NewReader(from)}
	t.Cleanup(func() {
		b.session = ""
		b.tell("Browser.close", nil) // so that it takes its own processes with it
		to.Close()
		_ = cmd.Wait()
		cancel()
		from.Close()
		if t.Failed() {
			t.Logf("Chromium:\n%s", log.Bytes())
		}
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var session struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &session)
	b.session = session.SessionID
	return b
}

func (b *browser) tell(method string, params any) {
	b.number++
	message := map[string]any{"id": b.number, "method": method, "params": params}
	if params == nil {
		delete(message, "params")
	}
	if b.session != "" {
		message["sessionId"] = b.session
	}
	raw, _ := json.Marshal(message)
	_, _ = b.to.Write(append(raw, 0))
}

// call tells the browser something and waits for what it says to that.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	b.tell(method, params)
	for {
		raw, err := b.from.ReadBytes(0)
		if err != nil {
			b.t.Fatalf("%s: the browser is gone: %v", method, err)
		}
		var message struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := json.Unmarshal(raw[:len(raw)-1], &message); err != nil {
			b.t.Fatal(err)
		}
		if message.ID != b.number {
			continue // an event, or the answer to something that nobody waits for
		}
		if message.Error != nil {
			b.t.Fatalf("%s: %s", method, message.Error.Message)
		}
		if err := json.Unmarshal(message.Result, result); err != nil {
			b.t.Fatal(err)
		}
		return
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	var result struct{ ErrorText string }
	b.call("Page.navigate", map[string]any{"url": url}, &result)
	if result.ErrorText != "" {
		b.t.Fatalf("%s: %s", url, result.ErrorText)
	}
}

// evaluate is the string that an expression of the page's gives; "" for what is none.
func (b *browser) evaluate(expression string) string {
	b.t.Helper()
	var result struct {
		Result struct{ Value any }
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression}, &result)
	text, _ := result.Result.Value.(string)
	return text
}
