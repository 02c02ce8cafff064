package maintenance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	k := Open(dir)
	now := time.UnixMilli(1_700_000_000_123)
	_, version, next := k.Since()
	for i, test := range []struct {
		address          string
		drained, changed bool
	}{
		{"10.0.0.2:80", true, true},
		{"10.0.0.1:80", true, true},
		{"10.0.0.1:80", true, false},
		{"10.0.0.2:80", false, true},
		{"10.0.0.2:80", false, false},
	} {
		changed, err := k.Set("app", test.address, test.drained, now)
		if err != nil || changed != test.changed || k.Drained("app", test.address) != test.drained {
			t.Errorf("step %d: changed %v, %v", i, changed, err)
		}
	}
	select {
	case <-next:
	default:
		t.Error("nobody was told")
	}
	for _, k := range []*Keeper{k, Open(dir)} { // as it is, and after a restart
		list, now, _ := k.Since()
		if len(list) != 1 || list[0].GetAddress() != "10.0.0.1:80" || list[0].GetCluster() != "app" || list[0].GetSinceUnixMs() != 1_700_000_000_123 {
			t.Errorf("drained: %v", list)
		}
		if k.Lost != nil || now < version {
			t.Errorf("lost %v, version %d", k.Lost, now)
		}
	}
}

func TestKeeperFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k := Open(dir); k.Lost == nil {
		t.Error("a damaged file was taken")
	}
	k := Open(filepath.Join(dir, "gone"))
	if _, err := k.Set("app", "10.0.0.1:80", true, time.Now()); err == nil || k.Drained("app", "10.0.0.1:80") {
		t.Error("what could not be kept was done")
	}
}

func TestKeeperIsBounded(t *testing.T) {
	k := Open(t.TempDir())
	for i := range Most {
		k.list = append(k.list, drained(i))
	}
	if _, err := k.Set("app", "x", true, time.Now()); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more than %d: %v", Most, err)
	}
	if changed, err := k.Set("app", fmt.Sprintf("%05d", 3), false, time.Now()); err != nil || !changed {
		t.Errorf("undrain: %v %v", changed, err)
	}
}

func drained(i int) *configv1.DrainedEndpoint {
	return &configv1.DrainedEndpoint{Cluster: "app", Address: fmt.Sprintf("%05d", i)}
}
