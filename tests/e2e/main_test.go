package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestMain has net/http speak extended CONNECT, which it reads from the environment when the process starts.
func TestMain(m *testing.M) {
	const setting = "http2xconnect=1"
	if debug := os.Getenv("GODEBUG"); !strings.Contains(debug, setting) {
		os.Setenv("GODEBUG", strings.Trim(debug+","+setting, ","))
		if self, err := os.Executable(); err == nil {
			_ = syscall.Exec(self, os.Args, os.Environ()) // comes back only when it cannot
		}
	}
	os.Exit(m.Run())
}
