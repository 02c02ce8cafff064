package systemd

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInstalled(t *testing.T) {
	for _, unit := range append(slices.Clone(daemons), "retinue.target") {
		name := unit
		if !strings.Contains(name, ".") {
			name += ".service"
		}
		await(t, name, func() bool {
			out, _ := command("systemctl", "is-active", name)
			return strings.TrimSpace(out) == "active"
		})
		if out := must(t, "systemctl", "is-enabled", name); strings.TrimSpace(out) != "enabled" {
			t.Errorf("%s is %s", name, out)
		}
	}
	r, err := http.Get("http://127.0.0.1:10000/") // the quickstart: the dashboard through the proxy
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != 200 {
		t.Errorf("the dashboard answers %d", r.StatusCode)
	}
	for _, page := range []string{"man8/proxyd.8", "man8/configd.8", "man8/statsd.8", "man8/restartd.8", "man1/retinue.1"} {
		if st, err := os.Stat("/usr/share/man/" + page); err != nil || st.Size() < 200 {
			t.Errorf("manual page %s: %v", page, err)
		}
	}
}

// TestUnits checks the unit files and how far each daemon is exposed.
func TestUnits(t *testing.T) {
	limits := map[string]string{
		"retinue-proxyd@7.service": "20", "retinue-proxyd@preflight.service": "20", "retinue-statsd.service": "20",
		"retinue-configd.service": "35", "retinue-restartd.service": "35", "retinue-plugin@x-7.service": "25",
	}
	// The template's binaries are made by restartd; verify wants them to be there.
	real := "/var/lib/retinue/restartd"
	for _, path := range []string{filepath.Join(real, "generations/7/proxyd"), filepath.Join(real, "candidate")} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/usr/lib/retinue/proxyd", path); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
	}
	defer os.Remove(filepath.Join(real, "generations/7"))
	for unit, limit := range limits {
		must(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit)
		must(t, "systemd-analyze", "security", "--no-pager", "--threshold="+limit, unit)
	}
	must(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "retinue.target")
}

// TestPolkit asks as the users themselves: restartd's user may start and stop generations and nothing else, the others may not.
func TestPolkit(t *testing.T) {
	for _, test := range []struct {
		user, verb, unit string
		denied           bool
	}{
		{"retinue-restartd", "stop", "retinue-proxyd@4711.service", false},
		{"retinue-restartd", "stop", "retinue-plugin@x-1.service", false},
		{"retinue-restartd", "kill", "retinue-proxyd@4711.service", false},
		{"retinue-restartd", "restart", "retinue-proxyd@4711.service", true},
		{"retinue-restartd", "stop", "retinue-statsd.service", true},
		{"retinue-restartd", "stop", "dbus.service", true},
		{"retinue-restartd", "start", "retinue-proxyd-evil.service", true},
		{"retinue-proxyd", "stop", "retinue-proxyd@4711.service", true},
		{"retinue-statsd", "start", "retinue-proxyd@4711.service", true},
	} {
		out, _ := command("setpriv", "--reuid", test.user, "--regid", "retinue", "--clear-groups", "systemctl", "--no-ask-password", test.verb, test.unit)
		denied := strings.Contains(out, "Access denied") || strings.Contains(out, "authentication required")
		if denied != test.denied {
			t.Errorf("%s: %s %s: denied %v, want %v: %s", test.user, test.verb, test.unit, denied, test.denied, out)
		}
	}
}

// TestPrivilegedPort: port 80 is served by a process that has no capability at all.
func TestPrivilegedPort(t *testing.T) {
	configure(t, "")
	if err := get(http.DefaultClient); err != nil {
		t.Fatal(err)
	}
	n := generations(t)
	if len(n) != 1 {
		t.Fatalf("generations %v", n)
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(mainPID(t, "retinue-proxyd@"+n[0])) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		if name, value, _ := strings.Cut(line, ":\t"); strings.HasPrefix(name, "Cap") && strings.Trim(value, "0") != "" {
			t.Errorf("proxyd has %s", line)
		}
	}
	if !strings.Contains(string(status), "NoNewPrivs:\t1") || !strings.Contains(string(status), "Seccomp:\t2") {
		t.Error("proxyd runs without its sandbox")
	}
}

func TestReload(t *testing.T) {
	configure(t, "")
	l := startLoad(t)
	before := mainPID(t, "retinue-configd")
	configure(t, `cluster "more" { endpoints = ["127.0.0.1:1"] }`)
	if err := os.WriteFile(configPath, []byte("listener {"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, status := command("systemctl", "reload", "retinue-configd"); status == 0 {
		t.Errorf("a broken file is reloaded: %s", out)
	}
	await(t, "the journal to name file and line", func() bool {
		return strings.Contains(must(t, "journalctl", "-b", "--no-pager", "-o", "cat", "-u", "retinue-configd"), "retinue.hcl:1")
	})
	configure(t, "")
	if after := mainPID(t, "retinue-configd"); after != before {
		t.Error("a reload replaced the process")
	}
	l.none(t)
}

func TestUpgrade(t *testing.T) {
	configure(t, "")
	http.DefaultClient.CloseIdleConnections()
	before := generations(t)
	l := startLoad(t)
	must(t, "systemctl", "reload", "retinue-restartd")
	await(t, "the old generation's end", func() bool {
		now := generations(t)
		return len(now) == 1 && now[0] != before[0]
	})
	must(t, "retinue", "upgrade", "--canary", "50", "--canary-time", "300ms", "--wait", "drained")
	l.none(t)
}

// TestUpgradeToBroken: a binary that cannot run is refused with an exit status, and nothing changes.
func TestUpgradeToBroken(t *testing.T) {
	configure(t, "")
	before := generations(t)
	l := startLoad(t)
	const installed = "/usr/lib/retinue/proxyd"
	good, err := os.ReadFile(installed)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(installed+".new", content, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(installed+".new", installed); err != nil {
			t.Fatal(err)
		}
	}
	defer replace(good)
	replace([]byte("#!/bin/sh\necho broken >&2\nexit 3\n"))
	if out, status := command("systemctl", "reload", "retinue-restartd"); status == 0 {
		t.Errorf("upgraded to a broken binary: %s", out)
	}
	if after := generations(t); !slices.Equal(before, after) {
		t.Errorf("generations %v before, %v after", before, after)
	}
	if out := must(t, "systemctl", "is-active", "retinue-restartd"); strings.TrimSpace(out) != "active" {
		t.Errorf("restartd is %s", out)
	}
	l.none(t)
}

// TestCrash kills each daemon under load. None but the proxy's own death may fail a request, and that no connection.
func TestCrash(t *testing.T) {
	configure(t, "")
	for _, unit := range daemons {
		t.Run(unit, func(t *testing.T) {
			l := startLoad(t)
			pid := mainPID(t, unit)
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			await(t, "a new "+unit, func() bool {
				now := mainPID(t, unit)
				return now != 0 && now != pid && property(t, unit, "ActiveState") == "active"
			})
			if n := property(t, unit, "NRestarts"); n == "0" {
				t.Error("systemd counts no restart")
			}
			l.none(t)
		})
	}
	t.Run("retinue-proxyd", func(t *testing.T) {
		n := generations(t)[0]
		pid := mainPID(t, "retinue-proxyd@"+n)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := get(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}); err != nil {
			t.Errorf("a connection made while proxyd was dead: %v", err)
		}
		await(t, "the next generation", func() bool {
			now := generations(t)
			return len(now) == 1 && now[0] != n
		})
		if out := must(t, "retinue", "status"); !strings.Contains(out, "killed") {
			t.Errorf("retinue status does not say how generation %s ended:\n%s", n, out)
		}
	})
	if out, _ := command("systemctl", "--failed", "--no-legend", "--plain"); strings.Contains(out, "retinue") {
		t.Errorf("failed units are left: %s", out)
	}
}

// TestHungWorker stops one worker loop of a proxyd that is well otherwise: it feeds the watchdog no more, systemd ends it, and the next
// generation serves.
func TestHungWorker(t *testing.T) {
	configure(t, "")
	dropIn := "/etc/systemd/system/retinue-proxyd@.service.d/watchdog.conf"
	if err := os.MkdirAll(filepath.Dir(dropIn), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dropIn, []byte("[Service]\nWatchdogSec=3s\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() {
		os.RemoveAll(filepath.Dir(dropIn))
		must(t, "systemctl", "daemon-reload")
	}()
	must(t, "systemctl", "daemon-reload")
	must(t, "retinue", "upgrade", "--probation", "0s", "--wait", "drained")
	n := generations(t)[0]
	ended := hang(t, mainPID(t, "retinue-proxyd@"+n), func() {
		for range 200 {
			if err := get(http.DefaultClient); err != nil {
				t.Fatal(err)
			}
		}
	})
	await(t, "the next generation", func() bool {
		now := generations(t)
		return len(now) == 1 && now[0] != n
	})
	ended()
	if err := get(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}); err != nil {
		t.Errorf("a request to the next generation: %v", err)
	}
	if journal := must(t, "journalctl", "-b", "--no-pager", "-u", "retinue-proxyd@"+n); !strings.Contains(journal, "Watchdog timeout") {
		t.Errorf("systemd did not end generation %s:\n%s", n, journal)
	}
}

// TestRestart restarts each daemon in order, as a package does. restartd leaves its generations and its sockets.
func TestRestart(t *testing.T) {
	configure(t, "")
	for _, unit := range daemons {
		t.Run(unit, func(t *testing.T) {
			before, store := generations(t), property(t, "retinue-restartd", "NFileDescriptorStore")
			if store == "0" {
				t.Error("the descriptor store is empty")
			}
			l := startLoad(t)
			must(t, "systemctl", "restart", unit)
			l.none(t)
			if after := generations(t); !slices.Equal(before, after) {
				t.Errorf("generations %v before, %v after", before, after)
			}
			if now := property(t, "retinue-restartd", "NFileDescriptorStore"); now != store {
				t.Errorf("%s descriptors in the store before, %s after", store, now)
			}
		})
	}
}

// TestPlugins: a plugin is a unit of its own, under a user of its own, and stays the same process while restartd is restarted and proxyd
// is upgraded.
func TestPlugins(t *testing.T) {
	bin := os.Getenv("RETINUE_BIN")
	if bin == "" {
		t.Skip("RETINUE_BIN names no directory with plugins")
	}
	const dir = "/usr/lib/retinue/plugins"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"header-stamp", "probe"} {
		must(t, "install", "-m", "0755", filepath.Join(bin, "plugins", name), dir)
	}
	const plugins = `
plugin "stamp" {
  command = "header-stamp"
  timeout = "10s"
  config {
    header = "x-stamp"
    value  = "seen"
  }
}
plugin "probe" {
  command     = "probe"
  environment = ["SECRET=hunter2"]
}
listener "stamped" {
  address = ["127.0.0.1:8082"]
  http {
    filters = [plugin.stamp]
    virtual_host "all" {
      domains = ["*"]
      route "/probe" {
        cluster = cluster.app
        filters = [plugin.probe]
      }
      route "/*" { cluster = cluster.app }
    }
  }
}`
	const url = "http://127.0.0.1:8082/"
	unit := func(name string) string {
		t.Helper()
		for _, i := range instances(t, "retinue-plugin@") {
			if strings.HasPrefix(i, name+"-") {
				return "retinue-plugin@" + i
			}
		}
		return ""
	}
	configure(t, plugins)
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != 200 || r.Header.Get("X-Stamp") != "seen" {
		t.Errorf("status %d, x-stamp %q", r.StatusCode, r.Header.Get("X-Stamp"))
	}
	stamp := unit("stamp")
	pid := mainPID(t, stamp)
	t.Run("sandbox", func(t *testing.T) {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]string{}
		for _, line := range strings.Split(string(status), "\n") {
			name, value, _ := strings.Cut(line, ":\t")
			if ids[name] = strings.TrimSpace(value); strings.HasPrefix(name, "Cap") && strings.Trim(value, "0") != "" {
				t.Errorf("the plugin has %s", line)
			}
		}
		if ids["NoNewPrivs"] != "1" || ids["Seccomp"] != "2" {
			t.Error("the plugin runs without its sandbox")
		}
		user, group := strings.TrimSpace(must(t, "id", "-u", "retinue-plugin")), strings.TrimSpace(must(t, "id", "-g", "retinue-plugin"))
		if got := strings.Fields(ids["Uid"])[1]; got != user || ids["Groups"] != group {
			t.Errorf("user %s with groups %q, want %s and %s alone", got, ids["Groups"], user, group)
		}
		if group, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup"); !strings.HasSuffix(strings.TrimSpace(string(group)), "/system.slice/"+strings.TrimSuffix(stamp, ".service")+".service") {
			t.Errorf("the plugin is in %q: its weight would be of no use in another slice", group)
		}
		if out := must(t, "systemctl", "show", "-p", "CPUWeight,Slice", stamp); !strings.Contains(out, "CPUWeight=10\n") || !strings.Contains(out, "Slice=system.slice\n") {
			t.Errorf("the plugin's unit has %q", out)
		}
		sees := "/proc/" + strconv.Itoa(pid) + "/root"
		for _, path := range []string{"/run/retinue/restartd.sock", "/var/lib/retinue/restartd/plugins.json", "/etc/retinue/retinue.hcl"} {
			if _, err := os.Stat(sees + path); err == nil {
				t.Errorf("the plugin sees %s", path)
			}
		}
		if left, _ := filepath.Glob("/run/retinue/plugins/*/start.json"); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	})
	t.Run("output", func(t *testing.T) {
		q, _ := http.NewRequest("GET", url+"probe", nil)
		q.Header.Set("X-Do", "say aloud")
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		await(t, "the journal to have what the plugin printed", func() bool {
			return strings.Contains(must(t, "retinue", "plugin", "logs", "probe"), "aloud\n")
		})
		if out := must(t, "journalctl", "-b", "--no-pager", "-o", "cat", "-u", unit("probe")); !strings.Contains(out, "aloud") {
			t.Errorf("the unit's journal: %s", out)
		}
	})
	t.Run("same process", func(t *testing.T) {
		l := startLoadOn(t, url)
		must(t, "systemctl", "restart", "retinue-restartd")
		before := generations(t)
		must(t, "systemctl", "reload", "retinue-restartd")
		await(t, "the old generation's end", func() bool {
			now := generations(t)
			return len(now) == 1 && now[0] != before[0]
		})
		l.none(t)
		if now := unit("stamp"); now != stamp || mainPID(t, stamp) != pid {
			t.Errorf("%s with pid %d before, %s with pid %d after", stamp, pid, now, mainPID(t, now))
		}
		if err := unix.Kill(mainPID(t, "retinue-restartd"), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "restartd to know its plugins again", func() bool {
			out, _ := command("retinue", "plugin", "list")
			return strings.Contains(out, strconv.Itoa(pid)) && strings.Contains(out, "serving")
		})
		if err := getFrom(http.DefaultClient, url); err != nil || mainPID(t, stamp) != pid {
			t.Errorf("after restartd was killed: %v, pid %d", err, mainPID(t, stamp))
		}
	})
	t.Run("crash", func(t *testing.T) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "the next generation", func() bool {
			now := unit("stamp")
			return now != "" && now != stamp && getFrom(http.DefaultClient, url) == nil
		})
		if out := must(t, "retinue", "plugin", "list"); !strings.Contains(out, "killed") {
			t.Errorf("retinue plugin list does not say how it ended:\n%s", out)
		}
		if out, _ := command("systemctl", "--failed", "--no-legend", "--plain"); strings.Contains(out, "retinue") {
			t.Errorf("failed units are left: %s", out)
		}
	})
	t.Run("stop", func(t *testing.T) {
		must(t, "systemctl", "stop", "retinue.target")
		await(t, "the end of all units", func() bool {
			out, _ := command("systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,deactivating,failed", "retinue*")
			return strings.TrimSpace(out) == ""
		})
		if left, err := filepath.Glob("/run/retinue/plugins/*"); err != nil || len(left) > 0 {
			t.Errorf("%v, %v", left, err)
		}
		must(t, "systemctl", "start", "retinue.target")
		await(t, "an answer", func() bool { return get(http.DefaultClient) == nil })
		configure(t, "")
		await(t, "the end of the plugins", func() bool { return len(instances(t, "retinue-plugin@")) == 0 })
		await(t, "the end of their programs", func() bool {
			left, err := filepath.Glob("/var/lib/retinue/restartd/programs/*")
			return err == nil && len(left) == 0
		})
	})
}

// TestJournal: what a daemon says is one JSON object a line, under its own unit.
func TestJournal(t *testing.T) {
	must(t, "journalctl", "--sync")
	for _, unit := range append(slices.Clone(daemons), "retinue-proxyd@"+generations(t)[0]) {
		program, _, _ := strings.Cut(strings.TrimPrefix(unit, "retinue-"), "@")
		lines := strings.Split(must(t, "journalctl", "-b", "--no-pager", "-o", "cat", "-u", unit, "_COMM="+program), "\n")
		count := 0
		for _, line := range lines {
			if line == "" || strings.HasPrefix(line, "--") {
				continue
			}
			count++
			var entry struct{ Level, Msg string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Level == "" || entry.Msg == "" {
				t.Errorf("%s says %q", unit, line)
			}
		}
		if count == 0 {
			t.Errorf("%s says nothing", unit)
		}
	}
	if log, err := os.ReadFile("/var/log/retinue/access.log"); err != nil || !strings.Contains(string(log), `"response_code":200`) {
		t.Errorf("the access log: %v: %.200s", err, log)
	}
}

// TestPackageUpgrade installs the package over itself under load.
func TestPackageUpgrade(t *testing.T) {
	configure(t, "")
	before := generations(t)
	l := startLoad(t)
	if err := install(); err != nil {
		t.Fatal(err)
	}
	await(t, "a new generation alone", func() bool {
		now := generations(t)
		return len(now) == 1 && now[0] != before[0]
	})
	l.none(t)
}

// TestSocketActivation: systemd holds the socket of a listener, and the first connection starts the suite.
func TestSocketActivation(t *testing.T) {
	configure(t, `
listener "activated" {
  address = ["127.0.0.1:8081"]
  tcp { cluster = cluster.app }
}`)
	must(t, "systemctl", "stop", "retinue.target")
	await(t, "the generations' end", func() bool { return len(generations(t)) == 0 })
	const unit = "/etc/systemd/system/retinue-activated.socket"
	text := "[Socket]\nListenStream=127.0.0.1:8081\nFileDescriptorName=activated\nService=retinue-restartd.service\n"
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() {
		must(t, "systemctl", "stop", "retinue-activated.socket")
		os.Remove(unit)
		must(t, "systemctl", "daemon-reload")
		must(t, "systemctl", "restart", "retinue.target")
	}()
	must(t, "systemctl", "daemon-reload")
	must(t, "systemctl", "start", "retinue-configd", "retinue-activated.socket")
	c, err := net.Dial("tcp", "127.0.0.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(answer), "hello") {
		t.Errorf("%q, %v", answer, err)
	}
}

// TestStop: after the target is stopped nothing of the suite is there.
func TestStop(t *testing.T) {
	configure(t, "")
	must(t, "systemctl", "stop", "retinue.target")
	await(t, "the end of all units", func() bool {
		out, _ := command("systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,deactivating,failed", "retinue*")
		return strings.TrimSpace(out) == ""
	})
	left, err := filepath.Glob("/run/retinue/*.sock")
	if err != nil || len(left) > 0 {
		t.Errorf("sockets %v, %v", left, err)
	}
	must(t, "systemctl", "start", "retinue.target")
	await(t, "an answer", func() bool { return get(http.DefaultClient) == nil })
}

// TestRemove is the last test: the package goes and leaves nothing running.
func TestRemove(t *testing.T) {
	must(t, "dpkg", "--purge", "retinue")
	if out, _ := command("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "retinue*"); strings.TrimSpace(out) != "" {
		t.Errorf("units are left: %s", out)
	}
	for _, path := range []string{"/usr/lib/retinue", "/var/lib/retinue", "/run/retinue", "/usr/bin/retinue", "/etc/retinue"} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if out, _ := command("ps", "-eo", "args"); strings.Contains(out, "/retinue/") {
		t.Errorf("processes are left:\n%s", out)
	}
}
