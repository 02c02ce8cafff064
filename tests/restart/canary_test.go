package restart

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// ended is how a subcommand that ran beside the test came out.
type ended struct {
	out  string
	code int
}

func begin(s *suite.Suite, args ...string) <-chan ended {
	done := make(chan ended, 1)
	go func() {
		out, code := s.Retinue(args...)
		done <- ended{out, code}
	}()
	return done
}

// canary waits until a generation has a share of percent and returns its process.
func canary(s *suite.Suite, percent int) (pid int) {
	s.Eventually(fmt.Sprintf("a canary of %d %%", percent), func() error {
		status, err := s.Status()
		if err != nil {
			return err
		}
		for _, g := range status.Restartd.Generations {
			if g.Canary == percent {
				_, err := fmt.Sscan(g.PID, &pid)
				return err
			}
		}
		return errors.New("there is none")
	})
	return pid
}

// connectionsOf is how many connections the generation of a process has.
func connectionsOf(s *suite.Suite, pid int) (int, error) {
	status, err := s.Status()
	if err != nil {
		return 0, err
	}
	for _, g := range status.Restartd.Generations {
		if g.PID == fmt.Sprint(pid) {
			return g.Connections, nil
		}
	}
	return 0, fmt.Errorf("process %d is no generation", pid)
}

// hold opens n connections that were answered once, and stay.
func hold(t *testing.T, network, address string, n int) (list []net.Conn) {
	t.Helper()
	for range n {
		c, err := net.DialTimeout(network, address, suite.Patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := speak(c); err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// speak sends four bytes and wants them back.
func speak(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	b := make([]byte, 4)
	for n := 0; n < len(b); {
		m, err := c.Read(b[n:])
		if err != nil {
			return err
		}
		n += m
	}
	return nil
}

// TestCanary gives a new generation a share of new connections, then all of them; another one gets a share and is taken back. Clients
// of every kind notice neither.
func TestCanary(t *testing.T) {
	app, echoes := suite.Upstream(t, app), suite.Upstream(t, echo)
	s := suite.Start(t, fmt.Sprintf(mixedConfig, 2, t.TempDir()+"/access.log", app, echoes, ""))
	web, tcp := s.Address("web"), s.Address("tcp")
	first, overflows := s.PID("proxyd"), listenOverflows(t)
	l := &load{t: t, stop: make(chan struct{}), count: map[string]*atomic.Int64{}}
	l.repeat("connection per request", 1, func() error {
		_, _, err := request(web, "GET /", nil)
		return err
	})
	l.repeat("new TCP connections", 1, func() error {
		_, err := ping(tcp)
		return err
	})
	var kept atomic.Int64
	l.all.Go(func() {
		if err := keepAlive(web, 10*time.Millisecond, l.stop, &kept); err != nil {
			t.Errorf("keep-alive: %v", err)
		}
	})

	const percent, n = 30, 300
	upgrade := begin(s, "upgrade", "--canary", fmt.Sprint(percent), "--canary-time", "0")
	second := canary(s, percent)
	if out, code := s.Retinue("status"); code != 0 || !strings.Contains(out, "canary: 30 % of new connections") || !strings.Contains(out, "upgrade from generation 1 to 2, canary") {
		t.Errorf("status: exit %d: %s", code, out)
	}
	if out, code := s.Retinue("upgrade"); code == 0 || !strings.Contains(out, "canary") {
		t.Errorf("a second upgrade: exit %d: %s", code, out)
	}
	held := hold(t, "tcp", tcp, n)
	s.Eventually("the canary's share", func() error {
		got, err := connectionsOf(s, second)
		if err != nil {
			return err
		}
		if want := n * percent / 100; got < want/2 || got > want*3/2 { // six standard deviations
			return fmt.Errorf("%d of %d connections, want about %d", got, n, want)
		}
		return nil
	})
	if pid := s.PID("proxyd"); pid != first {
		t.Errorf("process %d serves in the canary, want the old one %d", pid, first)
	}
	if out, code := s.Retinue("upgrade", "--commit"); code != 0 {
		t.Errorf("commit: exit %d: %s", code, out)
	}
	if e := <-upgrade; e.code != 0 {
		t.Errorf("the upgrade: exit %d: %s", e.code, e.out)
	}
	if pid := s.PID("proxyd"); pid != second {
		t.Errorf("process %d serves after the commit, want the new one %d", pid, second)
	}

	upgrade = begin(s, "upgrade", "--canary", "50", "--canary-time", "0")
	canary(s, 50)
	held = append(held, hold(t, "tcp", tcp, 40)...)
	if out, code := s.Retinue("upgrade", "--abort"); code != 0 {
		t.Errorf("abort: exit %d: %s", code, out)
	}
	if e := <-upgrade; e.code != 1 || !strings.Contains(e.out, "aborted on request; generation 2 serves again") {
		t.Errorf("the aborted upgrade: exit %d: %s", e.code, e.out)
	}
	if pid := s.PID("proxyd"); pid != second {
		t.Errorf("process %d serves after the abort, want %d", pid, second)
	}
	s.Eventually("what was shared has moved to who serves", func() error {
		if got, err := connectionsOf(s, second); err != nil || got < len(held) {
			return fmt.Errorf("%d of %d connections, %w", got, len(held), err)
		}
		return nil
	})
	for i, c := range held {
		if err := speak(c); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	close(l.stop)
	l.all.Wait()
	for name, count := range l.count {
		if count.Load() == 0 {
			t.Errorf("%s: none", name)
		}
	}
	if kept.Load() == 0 {
		t.Error("keep-alive: no request")
	}
	if now := listenOverflows(t); now != overflows {
		t.Errorf("ListenOverflows rose by %d", now-overflows)
	}
	if out, code := s.Retinue("upgrade", "--abort"); code == 0 || !strings.Contains(out, "no upgrade is under way") {
		t.Errorf("abort without an upgrade: exit %d: %s", code, out)
	}
}

// TestCanaryThatDies is taken back by itself: whoever comes next finds the old generation, on every shard.
func TestCanaryThatDies(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(tcpConfig, suite.Upstream(t, echo)))
	address, old := s.Address("echo"), s.PID("proxyd")
	upgrade := begin(s, "upgrade", "--canary", "60", "--canary-time", "1h")
	s.KillPID("the canary", canary(s, 60))
	if e := <-upgrade; e.code != 1 || !strings.Contains(e.out, "as a canary: signal: killed; generation 1 serves again") {
		t.Errorf("exit %d: %s", e.code, e.out)
	}
	for range 100 {
		if _, err := ping(address); err != nil {
			t.Fatal(err)
		}
	}
	if pid := s.PID("proxyd"); pid != old {
		t.Errorf("process %d serves, not the old one %d", pid, old)
	}
}

// TestOldGenerationDiesBesideACanary: its binary is the one that is known to be good, and is started again.
func TestOldGenerationDiesBesideACanary(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(tcpConfig, suite.Upstream(t, echo)))
	address := s.Address("echo")
	upgrade := begin(s, "upgrade", "--canary", "10", "--canary-time", "1h")
	canary(s, 10)
	s.Kill("proxyd")
	if e := <-upgrade; e.code != 1 || !strings.Contains(e.out, "its binary is started again") {
		t.Errorf("exit %d: %s", e.code, e.out)
	}
	for range 100 {
		if _, err := ping(address); err != nil {
			t.Fatal(err)
		}
	}
	s.AwaitServing()
}

// TestRestartdKilledInACanary: the next one goes on with the share, and the canary ends by its time.
func TestRestartdKilledInACanary(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(strings.Replace(tcpConfig, "runtime { workers = 2 }", "runtime { probation = \"0s\" }", 1), suite.Upstream(t, echo)))
	address, old := s.Address("echo"), s.PID("proxyd")
	begin(s, "upgrade", "--canary", "40", "--canary-time", "5s")
	second := canary(s, 40)
	held := hold(t, "tcp", address, 20)
	s.Kill("restartd")
	held = append(held, hold(t, "tcp", address, 20)...) // while nobody looks after it
	s.Eventually("the new generation serves", func() error {
		if pid := s.PID("proxyd"); pid != second {
			return fmt.Errorf("process %d does", pid)
		}
		return nil
	})
	s.Eventually("the old generation has left", func() error {
		if err := syscall.Kill(old, 0); err == nil {
			return errors.New("it lives")
		}
		return nil
	})
	for i, c := range held {
		if err := speak(c); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
}

// TestCanaryLeavesUnixListenersAlone: one socket has no shares.
func TestCanaryLeavesUnixListenersAlone(t *testing.T) {
	path := t.TempDir() + "/s"
	s := suite.Start(t, fmt.Sprintf(strings.Replace(tcpConfig, "127.0.0.1:0", "unix:"+path, 1), suite.Upstream(t, echo)))
	old := s.PID("proxyd")
	upgrade := begin(s, "upgrade", "--canary", "99", "--canary-time", "0", "--probation", "0s")
	second := canary(s, 99)
	held := hold(t, "unix", path, 20)
	s.Eventually("the old generation has them all", func() error {
		if got, err := connectionsOf(s, old); err != nil || got != len(held) {
			return fmt.Errorf("%d of %d, %w", got, len(held), err)
		}
		return nil
	})
	if out, code := s.Retinue("upgrade", "--commit"); code != 0 {
		t.Errorf("commit: exit %d: %s", code, out)
	}
	if e := <-upgrade; e.code != 0 {
		t.Errorf("the upgrade: exit %d: %s", e.code, e.out)
	}
	held = append(held, hold(t, "unix", path, 5)...)
	s.Eventually("the new generation has them all", func() error {
		if got, err := connectionsOf(s, second); err != nil || got != len(held) {
			return fmt.Errorf("%d of %d, %w", got, len(held), err)
		}
		return nil
	})
}
