// Package chaos kills and upgrades the suite's processes under load and counts what clients saw of it. `make chaos` prints the
// tables.
package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideVariable says that the process is in namespaces of its own.
const insideVariable = "RETINUE_CHAOS_INSIDE"

// TestMain runs the tests in namespaces of their own, where the kernel's count of overflowing queues is theirs alone and they may
// mount a small tmpfs. Where the system gives none, they run without.
func TestMain(m *testing.M) {
	if os.Getenv(insideVariable) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: the loopback interface:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	inside := exec.Command("/proc/self/exe", os.Args[1:]...)
	inside.Env = append(os.Environ(), insideVariable+"=1")
	inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, os.Stderr
	inside.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN},
		Pdeathsig:   syscall.SIGTERM,
	}
	if err := inside.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "chaos: no namespaces here (%v): overflows of accept queues are not counted, nothing is mounted\n", err)
		os.Exit(m.Run())
	}
	err := inside.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	os.Exit(inside.ProcessState.ExitCode())
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// overflows is how many connections found a full accept queue: a client that is made to wait a second, and no error anywhere.
// ok is false where others share the count.
func overflows(t *testing.T) (n int, ok bool) {
	t.Helper()
	if os.Getenv(insideVariable) == "" {
		return 0, false
	}
	raw, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "ListenOverflows" && i < len(fields) {
				if n, err = strconv.Atoi(fields[i]); err != nil {
					t.Fatal(err)
				}
				return n, true
			}
		}
	}
	t.Fatal("the kernel does not count ListenOverflows")
	return 0, false
}
