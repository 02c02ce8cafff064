package top

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Once waits one interval and writes the view: a table, or JSON.
func (s *Source) Once(ctx context.Context, out io.Writer, what string, interval time.Duration, asJSON bool) error {
	before, err := s.sample(time.Now())
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(interval):
	}
	now, err := s.sample(time.Now())
	if err != nil {
		return err
	}
	v := compare(before, now)
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(v.only(what))
	}
	var b strings.Builder
	for _, l := range v.text(what, 0, 0) {
		b.WriteString(l.text + "\n")
	}
	_, err = io.WriteString(out, b.String())
	return err
}

// only drops the tables that were not asked for.
func (v View) only(what string) View {
	if what == "overview" {
		return v
	}
	if what != "clusters" {
		v.Clusters = nil
	}
	if what != "listeners" {
		v.Listeners = nil
	}
	if what != "workers" {
		v.Workers = nil
	}
	if what != "draining" {
		v.Generations = nil
	}
	return v
}

// keys choose a view: the first letter of its name.
var keys = map[byte]string{'o': "overview", 'c': "clusters", 'l': "listeners", 'w': "workers", 'd': "draining"}

const (
	enter = "\x1b[?1049h\x1b[?25l"
	leave = "\x1b[?25h\x1b[?1049l"
	help  = "o overview  c clusters  l listeners  w workers  d draining  q quit"
)

// Live shows the view on a terminal, again every interval, until q or the context's end. It leaves the terminal as it was.
func (s *Source) Live(ctx context.Context, terminal *os.File, what string, interval time.Duration) error {
	input, err := openTerminal()
	if err != nil {
		return err
	}
	defer input.close()
	fmt.Fprint(terminal, enter)
	defer fmt.Fprint(terminal, leave)
	before, err := s.sample(time.Now())
	if err != nil {
		return err
	}
	var shown *View
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	fmt.Fprint(terminal, "\x1b[H\x1b[2J", "Retinue  one moment …")
	for {
		select {
		case <-ctx.Done():
			return nil
		case key, open := <-input.keys:
			if !open || key == 'q' || key == 3 {
				return nil
			}
			if view, known := keys[key]; known {
				what = view
			}
		case <-ticker.C:
			now, err := s.sample(time.Now())
			if err != nil {
				return err
			}
			v := compare(before, now)
			before, shown = now, &v
		}
		if shown != nil {
			draw(terminal, shown, what)
		}
	}
}

// draw writes one screen in one write, without clearing first, so that nothing flickers.
func draw(terminal *os.File, v *View, what string) {
	width, height := 100, 30
	if size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 0 {
		width, height = int(size.Col), int(size.Row)
	}
	var b strings.Builder
	b.WriteString("\x1b[H")
	for _, l := range v.text(what, width, height-2) {
		if l.bold {
			l.text = "\x1b[1m" + l.text + "\x1b[0m"
		}
		b.WriteString(l.text + "\x1b[K\r\n")
	}
	b.WriteString("\x1b[J\x1b[" + fmt.Sprint(height) + ";1H\x1b[2m" + help[:min(len(help), width)] + "\x1b[0m\x1b[K")
	_, _ = io.WriteString(terminal, b.String())
}

// terminal is the keyboard, unbuffered and without echo.
type terminal struct {
	file  *os.File
	saved unix.Termios
	keys  chan byte
}

func openTerminal() (*terminal, error) {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("no terminal to read keys from: %w (pipe the output, or use --json)", err)
	}
	state, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("the terminal's settings: %w", err)
	}
	t := &terminal{file: f, saved: *state, keys: make(chan byte)}
	state.Lflag &^= unix.ICANON | unix.ECHO
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, state); err != nil {
		f.Close()
		return nil, fmt.Errorf("the terminal's settings: %w", err)
	}
	go func() {
		defer close(t.keys)
		var b [1]byte
		for {
			if n, err := f.Read(b[:]); err != nil || n == 0 {
				return
			}
			t.keys <- b[0]
		}
	}()
	return t, nil
}

// close restores the terminal. The reader of keys ends with the process: a read of a terminal cannot be called back.
func (t *terminal) close() {
	_ = unix.IoctlSetTermios(int(t.file.Fd()), unix.TCSETS, &t.saved)
}
