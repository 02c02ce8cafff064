package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue.dev/libs/peer"
	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

func TestPolicy(t *testing.T) {
	own := uint32(os.Getuid())
	const stranger = 4_000_000_000
	for _, c := range []struct {
		method string
		uid    uint32
		ok     bool
	}{
		{restartv1.Restart_Upgrade_FullMethodName, own, true},
		{restartv1.Restart_Upgrade_FullMethodName, 0, true},
		{restartv1.Restart_Upgrade_FullMethodName, stranger, false},
		{restartv1.Restart_Status_FullMethodName, own, true},
		{restartv1.Restart_Status_FullMethodName, stranger, false},
		{restartv1.Restart_Attach_FullMethodName, stranger, false},
	} {
		if err := policy(c.method, peer.Cred{UID: c.uid, GID: c.uid}); (err == nil) != c.ok {
			t.Errorf("%s by %d: %v, want ok %t", c.method, c.uid, err, c.ok)
		}
	}
}

func TestInstalled(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir + "/none": "no such file", plain: "no executable file", dir: "no executable file",
	} {
		if err := Check(Config{Proxyd: path}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--proxyd") {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if err := os.Chmod(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Check(Config{Proxyd: plain}); err != nil {
		t.Error(err)
	}
}

func TestListenerOf(t *testing.T) {
	l := listenerOf(&configv1.Listener{
		Name: "web", Backlog: 7, TcpDeferAccept: true,
		Addresses: []*configv1.Address{{Address: "unix:/s", Mode: 0o100777}, {Address: "[::]:80"}},
	})
	if l.Name != "web" || l.Backlog != 7 || !l.DeferAccept || len(l.Addresses) != 2 ||
		l.Addresses[0].Mode != 0o777 || l.Addresses[1].Address != "[::]:80" {
		t.Errorf("%+v", l)
	}
}
