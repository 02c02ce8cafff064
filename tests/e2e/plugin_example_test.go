package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// TestPluginWithoutSDK runs the plugin that is written from the protocol page alone.
func TestPluginWithoutSDK(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("there is no python3")
	}
	program, err := filepath.Abs("../../examples/plugins/python-tag/tag.py")
	if err != nil {
		t.Fatal(err)
	}
	log := t.TempDir() + "/access.log"
	config := fmt.Sprintf(probeConfig, program, "15s", `tag = "snake"`, log, mirror(t))
	p := &probed{t: t, log: log, config: config}
	p.Suite = suite.Start(t, config)
	p.base, p.client = "http://"+p.Address("web"), client(t)
	for range 50 {
		if status, body, _ := p.ask("/x", ""); status != 200 || !strings.Contains(body, "x-python-tag: snake\n") {
			t.Fatalf("%d, %q; want the tag", status, body)
		}
	}
	if status, body, _ := p.get("/x", "x-python", "no"); status != 403 || body != "not today\n" {
		t.Errorf("%d, %q; want 403 with the plugin's words", status, body)
	}
	p.Write(strings.Replace(config, `"snake"`, `""`, 1))
	if out, code := p.Retinue("reload"); code != 1 || !strings.Contains(out, "test.hcl line 7") || !strings.Contains(out, "write a word") {
		t.Errorf("a setting that the plugin refuses: exit %d, want 1 with its place: %s", code, out)
	}
	pid := pluginPID(p.Suite, "probe")
	p.Kill("restartd")
	p.Eventually("restartd has adopted the plugin", func() error {
		if now := pluginPID(p.Suite, "probe"); now != pid {
			return fmt.Errorf("pid %d, want %d", now, pid)
		}
		return nil
	})
}

// TestPluginSettingsChecked: once a program has run, a check knows what it takes, without a suite that runs.
func TestPluginSettingsChecked(t *testing.T) {
	s := suite.New(t)
	const config = `
plugin "stamp" {
  command = %q
  config { header = "x-stamp" }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    filters = [plugin.stamp]
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { status = 200 }
      }
    }
  }
}
stats { listen = "off" }
`
	good := fmt.Sprintf(config, suite.Binary(t, "plugins/header-stamp"))
	s.Write(good)
	if out, code := s.Retinue("check", s.Config); code != 0 || !strings.Contains(out, "W0802") {
		t.Errorf("a check before the program has run: exit %d, want 0 with W0802: %s", code, out)
	}
	if out, code := s.Retinue("check", "--strict", s.Config); code != 1 {
		t.Errorf("a strict check before the program has run: exit %d: %s", code, out)
	}
	s.Run()
	if out, code := s.Retinue("check", s.Config); code != 0 || strings.Contains(out, "W0802") {
		t.Errorf("a check after the program has run: exit %d, want 0 without W0802: %s", code, out)
	}
	s.Write(strings.Replace(good, "header =", "haeder =", 1))
	if out, code := s.Retinue("check", s.Config); code != 1 || !strings.Contains(out, "E0802") || !strings.Contains(out, "test.hcl line 4") {
		t.Errorf("a check of a wrong setting: exit %d, want 1 with its place: %s", code, out)
	}
}

// TestPluginCountsItself reads a plugin's own counters off the metrics, before and after a crash of it.
func TestPluginCountsItself(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(`
plugin "key" {
  command = %q
  timeout = "15s"
  config {
    ttl  = "0s"
    keys = {}
  }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    filters = [plugin.key]
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { status = 200 }
      }
    }
  }
}
stats { listen = "127.0.0.1:0" }
`, suite.Binary(t, "plugins/api-key")))
	web := client(t)
	ask := func() {
		t.Helper()
		r, err := web.Get("http://" + s.Address("web") + "/")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != 401 {
			t.Errorf("status %d without a key, want 401", r.StatusCode)
		}
	}
	metrics := statsAddress(s)
	counted := func(line string) {
		t.Helper()
		s.Eventually(line, func() error {
			r, err := web.Get("http://" + metrics + "/metrics")
			if err != nil {
				return err
			}
			defer r.Body.Close()
			b, err := io.ReadAll(r.Body)
			if err == nil && !strings.Contains(string(b), line+"\n") {
				err = fmt.Errorf("%s", b)
			}
			return err
		})
	}
	ask()
	ask()
	counted(`retinue_plugin_own_refused_total{plugin="key"} 2`)
	counted(`retinue_plugin_own_accepted_total{plugin="key"} 0`)
	pid := pluginPID(s, "key")
	s.KillPID("", pid)
	s.Eventually("the plugin runs again", func() error {
		if now := pluginPID(s, "key"); now == 0 || now == pid {
			return fmt.Errorf("pid %d", now)
		}
		return nil
	})
	ask()
	counted(`retinue_plugin_own_refused_total{plugin="key"} 3`)
}

// TestPluginReattached serves by a process that the test started, as an author's debugger would. It is attached to, and let go alive.
func TestPluginReattached(t *testing.T) {
	dir := t.TempDir()
	c := exec.Command(suite.Binary(t, "plugins/probe"))
	c.Dir = dir
	c.Env = []string{"RETINUE_PLUGIN=filter", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR=."}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(strings.TrimSpace(line), "|")

	log := t.TempDir() + "/access.log"
	config := fmt.Sprintf(probeConfig, "/nonexistent/program", "15s", "", log, mirror(t))
	p := &probed{t: t, log: log, config: config, Suite: suite.New(t)}
	p.Env = []string{"RETINUE_REATTACH_PROBE=" + dir + "|" + rest}
	p.Write(config)
	p.Run()
	p.base, p.client = "http://"+p.Address("web"), client(t)
	if status, body, _ := p.ask("/x", "respond"); status != 418 {
		t.Errorf("%d, %q; want the plugin's answer", status, body)
	}
	if pid := pluginPID(p.Suite, "probe"); pid != c.Process.Pid {
		t.Errorf("pid %d serves, want %d", pid, c.Process.Pid)
	}
	p.Write(strings.Replace(config, `"15s"`, `"16s"`, 1))
	if out, code := p.Retinue("reload"); code != 0 {
		t.Fatalf("reload with another timeout: exit %d: %s", code, out)
	}
	if status, _, _ := p.ask("/x", "respond"); status != 418 || pluginPID(p.Suite, "probe") != c.Process.Pid {
		t.Errorf("after a change of its block: %d by pid %d", status, pluginPID(p.Suite, "probe"))
	}
	p.Signal(syscall.SIGTERM)
	p.Wait()
	if err := c.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the author's process was ended with the suite: %v", err)
	}
}

// TestPluginNetwork closes connections whose first bytes are not allowed, and gets out of the way of the others.
func TestPluginNetwork(t *testing.T) {
	upstream := suite.Upstream(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	log := t.TempDir() + "/access.log"
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
plugin "sniff" {
  command = %q
  timeout = "2s"
  config { allow = ["ssh"] }
}
listener "tcp" {
  address = ["127.0.0.1:0"]
  tcp {
    cluster    = cluster.echo
    filters    = [plugin.sniff]
    access_log = access_log.main
  }
}
access_log "main" {
  path   = %q
  format = "%%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%% %%BYTES_RECEIVED%%"
}
cluster "echo" { endpoints = [%q] }
stats { listen = "off" }
`, suite.Binary(t, "plugins/sniffer"), log, upstream))
	talk := func(pieces ...string) (string, error) {
		c, err := net.Dial("tcp", s.Address("tcp"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(suite.Patience))
		for _, piece := range pieces {
			if _, err := io.WriteString(c, piece); err != nil {
				return "", err
			}
		}
		_ = c.(*net.TCPConn).CloseWrite()
		back, err := io.ReadAll(c)
		return string(back), err
	}
	bulk := strings.Repeat("bulk", 1<<20)
	for range 10 {
		if back, err := talk("SS", "H-2.0-x\r\n", bulk); err != nil || back != "SSH-2.0-x\r\n"+bulk {
			t.Fatalf("an allowed protocol: %d bytes came back, %v", len(back), err)
		}
		if back, _ := talk("GET / HTTP/1.1\r\n\r\n"); back != "" {
			t.Fatalf("a forbidden one got %q", back)
		}
		if back, _ := talk("SS"); back != "" {
			t.Fatalf("one that stops before it is known got %q", back)
		}
	}
	s.Eventually("the access log says why", func() error {
		b, _ := os.ReadFile(log)
		if !strings.Contains(string(b), "plugin_sniff_responded") {
			return fmt.Errorf("it says:\n%s", b)
		}
		return nil
	})
}
