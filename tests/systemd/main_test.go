package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"retinue.dev/tests/sandbox"
)

// inside tells the test binary that it runs in the sandbox.
const inside = "RETINUE_IN_SANDBOX"

// TestMain runs the tests in a sandbox with a systemd of its own, where the package is installed first. Where there can be no
// sandbox they are skipped, with the reason; in continuous integration that is a failure.
func TestMain(m *testing.M) {
	sandbox.Init()
	var status int
	var err error
	if os.Getenv(inside) == "" {
		status, err = boot()
	} else if err = install(); err == nil {
		status = m.Run()
	}
	if err != nil {
		fmt.Println(err)
		status = 1
	}
	os.Exit(status)
}

// boot runs this very executable in a sandbox.
func boot() (int, error) {
	deb := os.Getenv("RETINUE_DEB")
	if deb == "" {
		fmt.Println("skipped: RETINUE_DEB names no package; make e2e builds one")
		return 0, nil
	}
	if err := sandbox.Available(); err != nil {
		fmt.Println("skipped:", err)
		if os.Getenv("CI") != "" {
			return 1, nil
		}
		return 0, nil
	}
	here, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	shared := []string{here, filepath.Dir(self), filepath.Dir(deb)}
	if bin := os.Getenv("RETINUE_BIN"); bin != "" {
		shared = append(shared, bin)
	}
	return sandbox.Run(sandbox.Config{
		Shared:      shared,
		Program:     append([]string{self}, os.Args[1:]...),
		Environment: []string{inside + "=1"},
		Timeout:     10 * time.Minute,
	})
}
