package plugin

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Output files are bounded: a plugin that floods fills no disk. Of a session's log the end is kept; the output of a unit is read up
// to the handshake and never again.
const (
	cutEvery  = time.Second
	mostLog   = 16 << 20
	keptLog   = 1 << 20
	mostStart = 1 << 20 // of a unit's output
)

// cutOutputs looks after the files of all processes.
func (m *Manager) cutOutputs() {
	for _, p := range m.plugins {
		for _, g := range p.gens {
			if g.process == nil || g.borrowed || g.Log == "" {
				continue
			}
			most, keep := int64(mostLog), int64(keptLog)
			if g.Unit != "" {
				most, keep = mostStart, 0
			}
			cut, err := cutOutput(g.Log, most, keep)
			if err != nil {
				m.opt.Log.Warn("output of a plugin cannot be cut", "plugin", p.name, "file", g.Log, "error", err)
			}
			if cut {
				m.opt.Log.Warn("output of a plugin was cut", "plugin", p.name, "generation", g.Number, "file", g.Log, "kept", keep)
			}
		}
	}
}

// cutOutput shortens a file that has more than most bytes to its last keep. Its writer appends, and goes on at the new end; what it
// writes meanwhile may be lost.
func cutOutput(path string, most, keep int64) (cut bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() <= most {
		return false, err
	}
	tail := make([]byte, keep)
	n, err := f.ReadAt(tail, st.Size()-keep)
	if err != nil && err != io.EOF {
		return false, err
	}
	_, whole, _ := bytes.Cut(tail[:n], []byte("\n"))
	if err := f.Truncate(0); err != nil || keep == 0 {
		return true, err
	}
	_, err = f.Write(append(fmt.Appendf(nil, "[%d bytes of output were cut here]\n", st.Size()-int64(len(whole))), whole...))
	return true, err
}
