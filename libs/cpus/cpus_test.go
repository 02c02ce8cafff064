package cpus

import (
	"runtime"
	"testing"
	"testing/fstest"
)

func TestUsable(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for _, c := range []struct {
		name     string
		affinity int
		files    fstest.MapFS
		want     int
	}{
		{"no cgroups", 4, fstest.MapFS{}, 4},
		{"affinity unknown", 0, fstest.MapFS{}, 1},
		{"v2 without quota", 4, fstest.MapFS{
			"proc/self/cgroup":        file("0::/a\n"),
			"sys/fs/cgroup/a/cpu.max": file("max 100000\n"),
		}, 4},
		{"v2 quota of two and a half", 8, fstest.MapFS{
			"proc/self/cgroup":        file("0::/a\n"),
			"sys/fs/cgroup/a/cpu.max": file("250000 100000\n"),
		}, 3},
		{"v2 quota below one", 8, fstest.MapFS{
			"proc/self/cgroup":        file("0::/a\n"),
			"sys/fs/cgroup/a/cpu.max": file("10000 100000\n"),
		}, 1},
		{"v2 ancestor is tighter", 8, fstest.MapFS{
			"proc/self/cgroup":            file("0::/a/b/c\n"),
			"sys/fs/cgroup/a/cpu.max":     file("200000 100000\n"),
			"sys/fs/cgroup/a/b/cpu.max":   file("max 100000\n"),
			"sys/fs/cgroup/a/b/c/cpu.max": file("400000 100000\n"),
		}, 2},
		{"v2 namespace root", 8, fstest.MapFS{
			"proc/self/cgroup":      file("0::/\n"),
			"sys/fs/cgroup/cpu.max": file("300000 100000\n"),
		}, 3},
		{"affinity is tighter", 2, fstest.MapFS{
			"proc/self/cgroup":      file("0::/\n"),
			"sys/fs/cgroup/cpu.max": file("300000 100000\n"),
		}, 2},
		{"v1", 8, fstest.MapFS{
			"proc/self/cgroup": file("5:cpuset:/x\n4:cpu,cpuacct:/docker/1\n"),
			"sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us":  file("150000\n"),
			"sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": file("100000\n"),
		}, 2},
		{"v1 without quota", 8, fstest.MapFS{
			"proc/self/cgroup":                    file("4:cpu:/\n"),
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us":  file("-1\n"),
			"sys/fs/cgroup/cpu/cpu.cfs_period_us": file("100000\n"),
		}, 8},
		{"nonsense counts as none", 8, fstest.MapFS{
			"proc/self/cgroup":      file("0::/\nnonsense\n::\n"),
			"sys/fs/cgroup/cpu.max": file("-5 0 7\n"),
		}, 8},
		{"zero period", 8, fstest.MapFS{
			"proc/self/cgroup":      file("0::/\n"),
			"sys/fs/cgroup/cpu.max": file("5 0\n"),
		}, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := usable(c.affinity, c.files); got != c.want {
				t.Errorf("usable = %d, want %d", got, c.want)
			}
		})
	}
}

func TestUsableHere(t *testing.T) {
	if n := Usable(); n < 1 || n > runtime.NumCPU() {
		t.Errorf("Usable = %d on a machine of %d", n, runtime.NumCPU())
	}
}
