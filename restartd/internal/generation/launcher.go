package generation

import (
	"context"
	"syscall"

	"retinue.dev/libs/preflight"
)

// Launch says what to start.
type Launch struct {
	Generation uint64
	Binary     string // the generation's own copy
}

// Process is one running generation, ours or adopted.
type Process struct {
	PID       int
	StartTime uint64 // ticks since boot, of /proc/PID/stat: with the pid it names a process for good
	// Signal fails when the process is gone; it never reaches another one that got the same pid.
	Signal func(syscall.Signal) error
}

// Exit is how a process ended.
type Exit struct {
	// Reason is for people: "exit status 1", "signal: killed", or that it is not known since the process was adopted.
	Reason string
}

// Survivor is a process that runs a generation's copy of the binary.
type Survivor struct {
	Generation uint64
	PID        int
	StartTime  uint64
}

// Launcher starts generations and finds them again. The exec launcher runs them as processes in sessions of their own;
// one that asks a service manager fits too: Start then returns the unit's main process.
//
// exited is called once, from a goroutine of the launcher's, when the process is gone; not when Start or Adopt failed
// before there was one.
type Launcher interface {
	// Preflight runs binary without sockets and returns what it says of itself.
	Preflight(ctx context.Context, binary string) (*preflight.Report, error)
	Start(l Launch, exited func(Exit)) (Process, error)
	// Adopt takes charge of a process that another restartd started; it fails when that process is gone.
	Adopt(pid int, startTime uint64, exited func(Exit)) (Process, error)
	// Survivors lists the processes that run a copy below dir, known or not.
	Survivors(dir string) []Survivor
}
