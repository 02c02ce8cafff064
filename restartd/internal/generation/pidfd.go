package generation

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// startTime reads field 22 of /proc/PID/stat. The second field, the name, may hold spaces and parentheses, so fields
// are counted from the last parenthesis. A zombie has ended for our purposes.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(b)
}

// StartTime is what names a process for good together with its pid, in ticks since boot.
func StartTime(pid int) (uint64, error) { return startTime(pid) }

func parseStat(b []byte) (uint64, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, fmt.Errorf("stat without a name: %.40q", b)
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("stat of %d fields", len(f)+2)
	}
	if f[0][0] == 'Z' || f[0][0] == 'X' {
		return 0, syscall.ESRCH
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// adopt opens the process and makes sure that it is the one that was meant: the start time is compared after the
// pidfd is open, when the pid cannot be given to another process unnoticed.
func adopt(pid int, start uint64, exited func(Exit)) (Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return Process{}, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	now, err := startTime(pid)
	if err == nil && now != start {
		err = fmt.Errorf("pid %d belongs to another process now", pid)
	}
	if err != nil {
		unix.Close(fd)
		return Process{}, err
	}
	signal := make(chan pidSignal)
	gone := make(chan struct{})
	go watch(fd, signal, gone, exited)
	return Process{PID: pid, StartTime: start, Signal: func(s syscall.Signal) error {
		answer := make(chan error, 1)
		select {
		case signal <- pidSignal{s, answer}:
			return <-answer
		case <-gone:
			return syscall.ESRCH
		}
	}}, nil
}

type pidSignal struct {
	signal syscall.Signal
	answer chan error
}

// watch owns the pidfd: it waits until the process is gone, and sends signals meanwhile, so that the descriptor is
// never used after it is closed.
func watch(fd int, signal <-chan pidSignal, gone chan<- struct{}, exited func(Exit)) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(p, -1); n > 0 || (err != nil && err != unix.EINTR && err != unix.EAGAIN) {
				return
			}
		}
	}()
	for {
		select {
		case s := <-signal:
			s.answer <- unix.PidfdSendSignal(fd, s.signal, nil, 0)
		case <-ended:
			close(gone)
			unix.Close(fd)
			exited(Exit{Reason: "ended; how is not known, since it was started by another restartd"})
			return
		}
	}
}

// survivors finds the processes whose executable is <dir>/N/proxyd.
func survivors(dir string) []Survivor {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []Survivor
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		if err != nil {
			continue
		}
		rel, ok := strings.CutPrefix(strings.TrimSuffix(exe, " (deleted)"), real+"/")
		if !ok || filepath.Base(rel) != binaryName {
			continue
		}
		n, err := strconv.ParseUint(filepath.Dir(rel), 10, 64)
		if err != nil {
			continue
		}
		if start, err := startTime(pid); err == nil {
			out = append(out, Survivor{n, pid, start})
		}
	}
	return out
}
