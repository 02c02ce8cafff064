package suite

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// NetStat reads one counter of the kernel's network stack, such as TcpExt ListenOverflows.
func NetStat(group, name string) (int64, error) {
	raw, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i := range min(len(names), len(fields)) {
			if names[i] == name {
				return strconv.ParseInt(fields[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("the kernel does not count %s %s", group, name)
}

// Snapshot is the id of the snapshot in force.
func (s *Suite) Snapshot() string {
	s.t.Helper()
	status, err := s.Status()
	if err != nil {
		s.t.Fatal(err)
	}
	return status.Configd.SnapshotID
}

// Shards is how many sockets a listener's address has.
func (s *Suite) Shards(listener string) (int, error) {
	status, err := s.Status()
	if err != nil {
		return 0, err
	}
	for _, l := range status.Restartd.Listeners {
		if l.Name == listener {
			return l.Shards, nil
		}
	}
	return 0, fmt.Errorf("listener %q is not in the bank", listener)
}
