package control

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"retinue.dev/proxyd/internal/health"
)

// What is known of hosts is kept in a file of the state directory, so that the next generation does not begin by sending requests
// to hosts that are known to be ill, however this one ends.
const (
	verdictsName = "health.json"
	// verdictsAge is how old a file may be: what was known longer ago says nothing. verdictsEvery refreshes it before.
	verdictsAge   = 3 * time.Minute
	verdictsEvery = time.Minute
	// mostVerdicts bounds the file that is read.
	mostVerdicts = 64 << 20
)

type verdicts struct {
	Written time.Time        `json:"written"`
	Hosts   []health.Verdict `json:"hosts"`
}

// inherit begins with what the generation before knew of hosts.
func (s *Server) inherit() {
	path := filepath.Join(s.env.StateDir, verdictsName)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var kept verdicts
	if err == nil && info.Size() > mostVerdicts {
		err = errors.New("it is too large")
	}
	if err == nil {
		var raw []byte
		if raw, err = os.ReadFile(path); err == nil {
			err = json.Unmarshal(raw, &kept)
		}
	}
	if err != nil {
		s.env.Log.Warn("what the last generation knew of hosts is not known", "path", path, "error", err)
		return
	}
	if age := time.Since(kept.Written); age < 0 || age > verdictsAge {
		return
	}
	s.monitor.Inherit(kept.Hosts)
}

// keepVerdicts writes the file when something changed, and now and then. A generation that drains leaves that to the next one.
func (s *Server) keepVerdicts(now time.Time) {
	if accepting, draining, _ := s.phase(); !accepting || draining {
		return
	}
	changed := s.judged.Swap(false)
	if !changed && now.Sub(s.verdictsWritten) < verdictsEvery {
		return
	}
	list := s.monitor.Verdicts()
	if len(list) == 0 && s.verdictsWritten.IsZero() {
		return
	}
	s.verdictsWritten = now
	if err := s.writeVerdicts(verdicts{now, list}); err != nil {
		s.env.Log.Warn("what is known of hosts cannot be kept for the next generation", "error", err)
	}
}

func (s *Server) writeVerdicts(v verdicts) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(s.env.StateDir, verdictsName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), filepath.Join(s.env.StateDir, verdictsName))
}
