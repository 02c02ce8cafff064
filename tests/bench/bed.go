package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds waits for processes.
const patience = 20 * time.Second

// bed is everything that runs during the benchmark, below one directory that goes at its end.
type bed struct {
	dir               string
	cpus              []int
	proxyCPU, loadCPU int
	upstreamPort      int
	peers             []*peer // retinue first
	stops             []func()
}

// peer is one proxy under test.
type peer struct {
	name              string
	dir               string
	process           *os.Process
	http, tcp, logged int
	config            string // path, of retinue
	bin               string
}

func newBed(bin string) (*bed, error) {
	if bin == "" {
		bin = filepath.Join("..", "bin")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "retinue-bench-")
	if err != nil {
		return nil, err
	}
	b := &bed{dir: dir}
	b.stops = append(b.stops, func() { os.RemoveAll(dir) })
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	for cpu := range 1024 {
		if set.IsSet(cpu) {
			b.cpus = append(b.cpus, cpu)
		}
	}
	b.proxyCPU, b.loadCPU = b.cpus[0], b.cpus[len(b.cpus)-1]
	if err := b.startUpstream(); err != nil {
		b.close()
		return nil, err
	}
	for _, start := range []func(string) (*peer, error){b.retinue, b.haproxy, b.nginx} {
		p, err := start(bin)
		if err != nil {
			b.close()
			return nil, err
		}
		if p != nil {
			b.peers = append(b.peers, p)
		}
	}
	return b, nil
}

func (b *bed) close() {
	for i := len(b.stops) - 1; i >= 0; i-- {
		b.stops[i]()
	}
}

// start runs a command on one CPU. A child inherits the affinity of the thread that makes it.
func start(cmd *exec.Cmd, cpu int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	return cmd.Start()
}

func (b *bed) startUpstream() error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=upstream")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := start(cmd, b.loadCPU); err != nil {
		return err
	}
	b.stops = append(b.stops, func() { in.Close(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return fmt.Errorf("the upstream does not start: %w", err)
	}
	b.upstreamPort, err = strconv.Atoi(strings.TrimSpace(line))
	return err
}

// begin starts a process of load; hold keeps it, with its connections, until released.
func (b *bed) begin(o loadOrder) (wait func() (loadReport, error), release func(), err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=load", orderVariable+"="+encode(o))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := start(cmd, b.loadCPU); err != nil {
		return nil, nil, err
	}
	release = func() {
		in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
	wait = func() (loadReport, error) {
		var r loadReport
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			return r, errors.New("the load ended without a report")
		}
		return r, json.Unmarshal([]byte(line), &r)
	}
	return wait, release, nil
}

func (b *bed) load(o loadOrder) (loadReport, error) {
	wait, release, err := b.begin(o)
	if err != nil {
		return loadReport{}, err
	}
	r, err := wait()
	release()
	return r, err
}

// tick is the unit of times in /proc/PID/stat.
const tick = 10 * time.Millisecond

// cpu is the CPU time that the peer's processes have used, threads that have ended included: its children, and whatever runs below
// its directory.
func (p *peer) cpu() (total time.Duration) {
	for _, pid := range p.pids() {
		if fields := stat(pid); len(fields) > 12 {
			for _, field := range fields[11:13] { // utime, stime
				ticks, _ := strconv.ParseUint(field, 10, 64)
				total += time.Duration(ticks) * tick
			}
		}
	}
	return total
}

func (p *peer) pids() (list []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && (strings.Contains(string(line), p.dir) || parent(pid) == p.process.Pid) {
			list = append(list, pid)
		}
	}
	return list
}

func parent(pid int) int {
	fields := stat(pid)
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1])
	return ppid
}

// stat is what /proc/PID/stat has behind the name.
func stat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// memory is the proportional set size of the peer's processes, in bytes.
func (p *peer) memory() (total uint64) {
	for _, pid := range p.pids() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Pss:" {
				kib, _ := strconv.ParseUint(fields[1], 10, 64)
				total += kib << 10
			}
		}
	}
	return total
}

// run starts a peer and waits until it proxies.
func (b *bed) run(p *peer, cmd *exec.Cmd) (*peer, error) {
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := start(cmd, b.proxyCPU); err != nil {
		return nil, err
	}
	p.process = cmd.Process
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); log.Close(); close(ended) }()
	b.stops = append(b.stops, func() {
		_ = p.process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = p.process.Kill()
		}
	})
	for _, port := range []int{p.http, p.tcp} {
		c := &client{order: &loadOrder{Port: port, Path: "/1k", Close: true}}
		for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
			err := c.request()
			if err == nil {
				break
			}
			if time.Now().After(end) {
				text, _ := os.ReadFile(log.Name())
				return nil, fmt.Errorf("%s does not proxy: %w\n%s", p.name, err, text)
			}
		}
	}
	return p, nil
}

// port is free now.
func port() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown kernel"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}
