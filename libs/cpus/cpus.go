// Package cpus tells how many CPUs a process may really use: the scheduler's affinity mask and the CPU quota of its
// control groups, both counted.
//
// restartd opens that many shards for a TCP listener and proxyd runs that many workers, so both must get the same
// answer from the same function. runtime.GOMAXPROCS is not it: it never goes below 2 under a quota.
package cpus

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Usable returns the number of CPUs that the calling process may use, at least 1. It is the size of the affinity
// mask of the process's first thread (so a worker that has pinned itself does not change the answer), lowered by the
// tightest CPU quota of the process's control group and its ancestors, a broken CPU counting as a whole one.
func Usable() int {
	var set unix.CPUSet
	n := 0
	if unix.SchedGetaffinity(os.Getpid(), &set) == nil {
		n = set.Count()
	}
	return usable(n, os.DirFS("/"))
}

func usable(affinity int, root fs.FS) int {
	n := max(affinity, 1)
	if q := quota(root); q > 0 {
		n = min(n, q)
	}
	return n
}

// quota returns the smallest quota in whole CPUs (rounded up) on the way from the process's control group to the
// root, 0 when there is none. What cannot be read counts as no quota: the answer is a default, not a limit.
func quota(root fs.FS) int {
	list, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0
	}
	least := 0
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		// "hierarchy:controllers:path"; hierarchy 0 without controllers is version 2.
		part := strings.SplitN(lines.Text(), ":", 3)
		if len(part) != 3 {
			continue
		}
		var mounts []string
		var read func(fs.FS, string) int
		switch {
		case part[0] == "0" && part[1] == "":
			mounts, read = []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}, quota2
		case hasController(part[1], "cpu"):
			mounts, read = []string{"sys/fs/cgroup/" + part[1], "sys/fs/cgroup/cpu"}, quota1
		default:
			continue
		}
		for _, mount := range mounts {
			for dir := path.Clean("/" + part[2]); ; dir = path.Dir(dir) {
				if q := read(root, path.Join(mount, dir)); q > 0 && (least == 0 || q < least) {
					least = q
				}
				if dir == "/" {
					break
				}
			}
		}
	}
	return least
}

func hasController(list, name string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// quota2 reads cpu.max: "max 100000" or "quota period" in µs.
func quota2(root fs.FS, dir string) int {
	b, err := fs.ReadFile(root, path.Join(dir, "cpu.max"))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0
	}
	return divide(f[0], f[1])
}

// quota1 reads version 1's pair of files; a quota of -1 is none.
func quota1(root fs.FS, dir string) int {
	q, err := fs.ReadFile(root, path.Join(dir, "cpu.cfs_quota_us"))
	if err != nil {
		return 0
	}
	p, err := fs.ReadFile(root, path.Join(dir, "cpu.cfs_period_us"))
	if err != nil {
		return 0
	}
	return divide(strings.TrimSpace(string(q)), strings.TrimSpace(string(p)))
}

func divide(quota, period string) int {
	q, err := strconv.ParseInt(quota, 10, 64)
	if err != nil || q <= 0 {
		return 0
	}
	p, err := strconv.ParseInt(period, 10, 64)
	if err != nil || p <= 0 {
		return 0
	}
	return int(min((q-1)/p+1, 1<<16))
}
