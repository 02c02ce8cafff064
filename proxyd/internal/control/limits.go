package control

import (
	"context"
	"errors"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/sdnotify"
	"retinue.dev/proxyd/internal/counters"
)

// raiseLimits takes all the descriptors that the process may have, and tells how many.
func raiseLimits() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil && !errors.Is(err, unix.EPERM) {
		return 0, err
	}
	return limit.Cur, nil
}

// limitMemory makes collections rare, since they run beside the loops, and keeps the heap below the control group's limit.
// GOGC and GOMEMLIMIT of the environment have the last word.
func limitMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := memoryLimit("/"); limit > 0 {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
}

// memoryLimit is the least memory.max between the process's control group and the root, in bytes; 0 for none.
func memoryLimit(root string) int64 {
	list, err := os.ReadFile(path.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0
	}
	least := int64(0)
	for line := range strings.Lines(string(list)) {
		group, found := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !found {
			continue
		}
		for dir := path.Clean("/" + group); ; dir = path.Dir(dir) {
			raw, err := os.ReadFile(path.Join(root, "sys/fs/cgroup", dir, "memory.max"))
			if n, bad := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && bad == nil && n > 0 && (least == 0 || n < least) {
				least = n
			}
			if dir == "/" {
				break
			}
		}
	}
	return least
}

func closeFD(fd int) { _ = unix.Close(fd) }

// watchdog feeds the supervisor's watchdog while every loop turns. It is asked three times an interval and wakes loops that sleep,
// so that two thirds of it are enough for one that lives.
func (s *Server) watchdog(ctx context.Context) {
	within := sdnotify.WatchdogInterval() / 3 * 2
	s.env.FeedWatchdog(ctx, func() bool {
		n := s.loops.stuck(within)
		if n > 0 {
			s.count(counters.ServerWatchdogMiss, uint64(n))
			s.env.Log.Error("worker loops stand still", "loops", n, "longer_than", within.String())
		}
		return n == 0
	})
}
