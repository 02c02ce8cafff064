package restart

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"retinue.dev/tests/suite"
)

// TestMoreWorkersByAnUpgrade: the snapshot asks for more workers, the next generation has them, and each accepts.
func TestMoreWorkersByAnUpgrade(t *testing.T) {
	config := func(workers int) string {
		return strings.Replace(tcpConfig, "runtime { workers = 2 }", fmt.Sprintf("runtime {\n  workers   = %d\n  probation = \"0s\"\n}", workers), 1)
	}
	upstream := suite.Upstream(t, echo)
	s := suite.Start(t, fmt.Sprintf(config(1), upstream))
	address := s.Address("echo")
	s.Write(fmt.Sprintf(config(3), upstream))
	for _, args := range [][]string{{"reload"}, {"upgrade"}} {
		if out, code := s.Retinue(args...); code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, out)
		}
	}
	shards, err := s.Shards("echo")
	if err != nil || shards != 3 {
		t.Errorf("%d shards, %v; want 3", shards, err)
	}
	for range 200 {
		if _, err := ping(address); err != nil {
			t.Fatal(err) // a shard that nobody accepts from would keep it waiting
		}
	}
	s.Write(fmt.Sprintf(config(1), upstream))
	for _, args := range [][]string{{"reload"}, {"upgrade"}} {
		if out, code := s.Retinue(args...); code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, out)
		}
	}
	for range 200 {
		if _, err := ping(address); err != nil {
			t.Fatal(errors.Join(errors.New("one worker, three shards"), err))
		}
	}
}
