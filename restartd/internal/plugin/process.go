package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/restartd/internal/generation"
)

const (
	handshakeTime  = 5 * time.Second // start to the handshake line
	handshakeBytes = 64 << 10        // of output before it
	maxSocketPath  = 107
	defaultFiles   = 1024
	killAgain      = 2 * time.Second
)

// findProgram resolves a command: a path, or a name in one of the plugin directories.
func findProgram(command string, dirs []string) (string, error) {
	if filepath.IsAbs(command) {
		return command, nil
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, command)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no %q in %s: install it there, or write an absolute path", command, strings.Join(dirs, " or "))
}

// passed are the variables that a plugin inherits.
var passed = []string{"PATH", "HOME", "TZ", "LANG", "LC_ALL", "GODEBUG", "GOCOVERDIR", "RETINUE_PLUGIN_ORPHAN_MS"}

func environment(name string, number uint64, object *configv1.Plugin) []string {
	env := []string{
		cookieKey + "=" + cookieValue,
		"RETINUE_PLUGIN_NAME=" + name, "RETINUE_PLUGIN_GENERATION=" + strconv.FormatUint(number, 10),
		"PLUGIN_PROTOCOL_VERSIONS=" + spoken().String(),
		"PLUGIN_UNIX_SOCKET_DIR=.", "PLUGIN_MIN_PORT=0", "PLUGIN_MAX_PORT=0",
		"GOMAXPROCS=2",
	}
	for _, v := range passed {
		if value, ok := os.LookupEnv(v); ok {
			env = append(env, v+"="+value)
		}
	}
	return append(env, object.GetEnvironment()...)
}

// process is a running plugin process.
type process struct {
	generation.Process
	unit   string        // of systemd; "" where it is a session of ours
	stop   func() error  // asks it to end, with all that it started
	settle func()        // it is ready: it weighs less from now on; nil for a unit
	gone   chan struct{} // closed at its end
	how    string        // valid then
}

// task is what a launcher starts.
type task struct {
	plugin  string
	number  uint64
	program string // the generation's own copy
	dir     string // working directory, made
	log     string // output file of a session
	start
}

// start is how the program is run; a unit reads it from a file.
type start struct {
	Program     string   `json:"program"`
	Args        []string `json:"args"`
	Environment []string `json:"environment"`
	Files       uint64   `json:"files"`  // RLIMIT_NOFILE
	Memory      uint64   `json:"memory"` // RLIMIT_DATA, bytes; 0: no limit
}

func startOf(t *task, o *configv1.Plugin) {
	t.start = start{
		Program: t.program, Args: o.GetArgs(), Environment: environment(t.plugin, t.number, o),
		Files: uint64(o.GetOpenFiles()), Memory: o.GetMemoryBytes(),
	}
	if t.Files == 0 {
		t.Files = defaultFiles
	}
}

// Launcher is how plugin processes run and how they are found again: Sessions or Units.
type Launcher interface {
	// launch starts a process. Its handshake line will be in the file that is returned.
	launch(t *task) (p *process, output string, err error)
	// adopt takes charge of a process that another restartd started; it fails when that is gone.
	adopt(pid int, start uint64) (*process, error)
	// strays are the processes that a restartd started in root, the directory of working directories, and that are not in
	// known.
	strays(root string, known map[string]bool) []*process
	// share gives a file or directory to the plugin's user.
	share(path string, mode os.FileMode) error
}

// end asks the process to end and kills it when it does not within patience.
func (p *process) end(patience time.Duration) {
	_ = p.stop()
	select {
	case <-p.gone:
	case <-time.After(patience):
		p.kill()
	}
}

// kill returns when the process is gone. A unit is killed over a bus that may be away for a while.
func (p *process) kill() {
	for {
		_ = p.Signal(syscall.SIGKILL)
		select {
		case <-p.gone:
			return
		case <-time.After(killAgain):
		}
	}
}

// handshake is the first line of go-plugin.
type handshake struct {
	address string // absolute
	kind    string // "grpc" or "frames"
	major   major
}

// awaitHandshake reads the output file until the line is there.
func awaitHandshake(ctx context.Context, p *process, log, dir string) (*handshake, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		b, err := readStart(log)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a unit makes its own
			return nil, err
		}
		if h, err := parseHandshake(b, dir); h != nil || err != nil {
			return h, err
		}
		select {
		case <-tick.C:
		case <-p.gone:
			return nil, fmt.Errorf("it ended before the handshake, %s%s", p.how, p.lastWords(log))
		case <-ctx.Done():
			return nil, fmt.Errorf("no handshake line within %s%s", handshakeTime, p.lastWords(log))
		}
	}
}

// readStart reads the beginning of an output file, which a plugin may have replaced by something else.
func readStart(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file: %v", path, err)
	}
	return io.ReadAll(io.LimitReader(f, handshakeBytes))
}

// parseHandshake finds the line among others; nil without an error when it is not there yet.
func parseHandshake(b []byte, dir string) (*handshake, error) {
	for {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return nil, nil
		}
		b = rest
		f := strings.Split(strings.TrimSpace(string(line)), "|")
		if len(f) < 5 || f[0] != "1" || f[2] != "unix" {
			continue
		}
		version, err := spoken().choose(f[1])
		if err != nil {
			return nil, err
		}
		if len(f) > 5 && f[5] != "" {
			return nil, errors.New("it wants TLS (AutoMTLS), with which a process cannot be adopted")
		}
		return &handshake{address: absolute(f[3], dir), kind: f[4], major: version}, nil
	}
}

func absolute(path, dir string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// lastWords is the last line of a log, for an error message.
func (p *process) lastWords(path string) string {
	if p.unit != "" {
		return fmt.Sprintf(": journalctl -u %s says more", p.unit)
	}
	b, err := readStart(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	last := lines[len(lines)-1]
	if last == "" {
		return ""
	}
	return fmt.Sprintf(": %.200s", last)
}
