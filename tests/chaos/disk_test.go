package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"retinue.dev/tests/suite"
)

// smallDisk mounts a tmpfs of so many MiB.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	if os.Getenv(insideVariable) == "" {
		t.Skip("a small tmpfs cannot be mounted here: no namespaces")
	}
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%dm,mode=0750", mib)); err != nil {
		t.Skipf("a small tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill writes until there is no room.
func fill(t *testing.T, dir string) (file string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size >>= 1 { // to the last byte
		for piece := bytes.Repeat([]byte("x"), size); err == nil; {
			_, err = f.Write(piece)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
	return f.Name()
}

// TestFullRunDirectory fills the tmpfs on which sockets, the stats region and all state lie. Traffic goes on; what needs room
// fails with a reason and changes nothing; daemons that are killed come back; with room all works again.
func TestFullRunDirectory(t *testing.T) {
	s := suite.New(t)
	s.Dir = filepath.Join(smallDisk(t, 160), "run")
	app := application(t)
	s.Write(app)
	s.Run()
	l := startLoad(t, s)
	filler := fill(t, filepath.Dir(s.Dir))

	if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 1 || !strings.Contains(out, "no space left on device") {
		t.Errorf("upgrade without room: exit %d, want 1 and the reason: %s", code, out)
	}
	// New series find no room in the region: they are not counted, and the clusters work all the same.
	var more strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&more, "cluster \"more_%d\" { endpoints = [\"127.0.0.1:1\"] }\n", i)
	}
	s.Write(app + more.String())
	if out, code := s.Retinue("reload"); code != 0 {
		t.Errorf("reload without room for its series: exit %d: %s", code, out)
	}
	l.flows(100)
	for _, d := range []string{"statsd", "configd", "restartd"} {
		pid := s.PID(d)
		s.KillPID(d, pid)
		s.Eventually(d+" is back without room", func() error {
			if now := s.PID(d); now == 0 || now == pid {
				return fmt.Errorf("it is process %d", now)
			}
			_, err := s.Status()
			return err
		})
		l.flows(100)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.Eventually("with room an upgrade works", func() error {
		if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
			return fmt.Errorf("exit %d: %s", code, out)
		}
		return nil
	})
	l.flows(100)
	l.end()
	l.complain(t, true)
	if out, code := s.Retinue("status"); code != 0 {
		t.Errorf("status: exit %d: %s", code, out)
	}
}

// TestNoRoomAtTheStart: a suite that finds no room ends and says so.
func TestNoRoomAtTheStart(t *testing.T) {
	s := suite.New(t)
	dir := smallDisk(t, 2)
	s.Dir = filepath.Join(dir, "run")
	if err := os.Mkdir(s.Dir, 0o750); err != nil {
		t.Fatal(err)
	}
	s.Write(application(t))
	fill(t, dir)
	s.Launch()
	if exit := s.Wait(); exit != 1 || !strings.Contains(s.Log(), "no space left on device") {
		t.Errorf("exit %d, want 1 and the reason: %s", exit, s.Log())
	}
}
