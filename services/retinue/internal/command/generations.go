package command

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// leftoverTime is how long a proxyd may drain that restartd did not live to end; proxyd itself takes 5 s for it.
const leftoverTime = 8 * time.Second

// endLeftovers ends generations of proxyd that are still there when everything else has stopped: restartd was killed and not
// back yet, or a second interrupt killed it. Without force they drain first.
func (sh *shell) endLeftovers(force <-chan struct{}) {
	pids := sh.generations()
	end := func(signal unix.Signal) {
		for _, pid := range pids {
			_ = unix.Kill(pid, signal) // gone is as good
		}
	}
	end(unix.SIGTERM)
	hard := time.After(leftoverTime)
	for ; len(pids) > 0; pids = sh.generations() {
		select {
		case <-force:
			end(unix.SIGKILL)
		case <-hard:
			end(unix.SIGKILL)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// generations are the processes that run one of restartd's copies of proxyd for this run directory.
func (sh *shell) generations() (pids []int) {
	copies := filepath.Join(sh.dir, "state", "restartd", "generations") + string(filepath.Separator)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && strings.HasPrefix(target, copies) { // else another user's, or gone
			pids = append(pids, pid)
		}
	}
	return pids
}
