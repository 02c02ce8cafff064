package generation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"retinue.dev/restartd/internal/durable"
)

// ledgerVersion is the layout below. A reader takes its own version and older ones.
const ledgerVersion = 1

const (
	maxLedger  = 4 << 20
	maxRecords = 4096
)

// ledger is what the next restartd must know, written whole on each change and before the action that it announces.
type ledger struct {
	Version     int            `json:"version"`
	Boot        string         `json:"boot"` // of the kernel: pids and start times of another boot say nothing
	Next        uint64         `json:"next"`
	Incumbent   uint64         `json:"incumbent"` // serves, or shall; 0 after an orderly stop
	Previous    uint64         `json:"previous"`  // whose binary a rollback returns to
	Generations []record       `json:"generations"`
	Upgrade     *upgradeRecord `json:"upgrade,omitempty"`
	History     []string       `json:"history,omitempty"`   // newest first
	Aside       string         `json:"set_aside,omitempty"` // a snapshot under which proxyd crashes
}

// record is one generation's line.
type record struct {
	Number        uint64 `json:"number"`
	State         string `json:"state"`
	PID           int    `json:"pid"` // 0 between the decision to start it and the start
	StartTime     uint64 `json:"start_time"`
	SHA256        string `json:"sha256"`
	Version       string `json:"version,omitempty"`
	GitRevision   string `json:"git_revision,omitempty"`
	SnapshotID    string `json:"snapshot_id,omitempty"`
	StartedUnixMS int64  `json:"started_unix_ms"`
	// DrainUntilUnixMS is when a draining generation is ended.
	DrainUntilUnixMS int64  `json:"drain_until_unix_ms,omitempty"`
	Restarts         uint32 `json:"restarts"`
	Message          string `json:"message,omitempty"`
}

type upgradeRecord struct {
	Candidate            uint64 `json:"candidate"`
	From                 uint64 `json:"from"`          // the incumbent when it began
	Old                  uint64 `json:"old,omitempty"` // once committed: the generation in probation beside the new one
	Binary               string `json:"binary"`
	Phase                string `json:"phase"`
	StartedUnixMS        int64  `json:"started_unix_ms"`
	ProbationMS          int64  `json:"probation_ms"`
	ProbationUntilUnixMS int64  `json:"probation_until_unix_ms,omitempty"`
	CanaryPercent        int    `json:"canary_percent,omitempty"`
	CanaryMS             int64  `json:"canary_ms,omitempty"`
	CanaryUntilUnixMS    int64  `json:"canary_until_unix_ms,omitempty"`
}

func parseLedger(b []byte) (*ledger, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	var l ledger
	if err := d.Decode(&l); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	if d.More() {
		return nil, errors.New("ledger: something follows it")
	}
	if l.Version < 1 || l.Version > ledgerVersion {
		return nil, fmt.Errorf("ledger of version %d, this restartd reads 1 to %d", l.Version, ledgerVersion)
	}
	if len(l.Generations) > maxRecords {
		return nil, fmt.Errorf("ledger of %d generations", len(l.Generations))
	}
	seen := map[uint64]bool{}
	for _, r := range l.Generations {
		if _, ok := stateNames[r.State]; !ok || r.Number == 0 || r.PID < 0 || seen[r.Number] {
			return nil, fmt.Errorf("ledger: generation %d (state %q, pid %d) makes no sense", r.Number, r.State, r.PID)
		}
		seen[r.Number] = true
	}
	if l.Incumbent != 0 && !seen[l.Incumbent] {
		return nil, fmt.Errorf("ledger: the serving generation %d is not in it", l.Incumbent)
	}
	if u := l.Upgrade; u != nil && ((u.Candidate != 0 && !seen[u.Candidate]) || (u.Old != 0 && !seen[u.Old])) {
		return nil, fmt.Errorf("ledger: an upgrade from %d to %d that are not in it", u.Old, u.Candidate)
	}
	if u := l.Upgrade; u != nil && (u.CanaryPercent < 0 || u.CanaryPercent > 99) {
		return nil, fmt.Errorf("ledger: a canary of %d %%", u.CanaryPercent)
	}
	return &l, nil
}

// readLedger returns nil without an error when there is none.
func readLedger(path string) (*ledger, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st.Size() > maxLedger {
		return nil, fmt.Errorf("ledger of %d bytes", st.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseLedger(b)
}

func (l *ledger) write(path string) error {
	b, err := json.MarshalIndent(l, "", "\t")
	if err != nil {
		return err
	}
	return durable.Write(path, append(b, '\n'), 0o600)
}
