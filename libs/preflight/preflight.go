// Package preflight is what a candidate binary says before it is started: `proxyd --preflight --dir DIR` loads the
// running snapshot without sockets, writes one Report to standard output and exits 0. restartd reads it before an
// upgrade touches anything.
package preflight

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"retinue.dev/libs/hello"
	suitev1 "retinue.dev/services/api/suite/v1"
)

// Limit bounds a report in bytes.
const Limit = 64 << 10

// Revisions is the span of one contract's revisions that a binary understands.
type Revisions struct {
	Revision    uint32 `json:"revision"`
	MinRevision uint32 `json:"min_revision"`
}

// Report is the candidate's answer. Fields that a reader does not know are ignored: the candidate is the newer one.
type Report struct {
	Daemon      string               `json:"daemon"`
	Version     string               `json:"version"`
	GitRevision string               `json:"git_revision,omitempty"`
	SnapshotID  string               `json:"snapshot_id,omitempty"` // of the snapshot that it loaded; "" when there is none yet
	Contracts   map[string]Revisions `json:"contracts"`             // by name: "restart/v1"
	// Sandbox is what the launcher says of how the candidate was confined meanwhile; "" where a unit file does.
	Sandbox string `json:"-"`
}

// New is the report of this very binary for the contracts it speaks.
func New(daemon, snapshotID string, contracts ...string) *Report {
	r := &Report{Daemon: daemon, SnapshotID: snapshotID, Contracts: map[string]Revisions{}}
	for _, c := range contracts {
		h := hello.Mine(daemon, c)
		r.Version, r.GitRevision = h.GetVersion(), h.GetGitRevision()
		r.Contracts[c] = Revisions{h.GetRevision(), h.GetMinRevision()}
	}
	return r
}

// Write writes the report as one line of JSON.
func (r *Report) Write(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

// Parse reads what a candidate wrote.
func Parse(b []byte) (*Report, error) {
	if len(b) > Limit {
		return nil, fmt.Errorf("preflight report of %d bytes, at most %d are read", len(b), Limit)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("preflight report: %w", err)
	}
	if r.Daemon == "" || len(r.Contracts) == 0 {
		return nil, fmt.Errorf("preflight report names no daemon or no contract: is the binary a proxyd?")
	}
	return &r, nil
}

// Check tells whether the candidate is the daemon that is wanted and speaks every contract that mine names.
func (r *Report) Check(mine *Report) error {
	if r.Daemon != mine.Daemon {
		return fmt.Errorf("the binary is %q, not %q", r.Daemon, mine.Daemon)
	}
	for _, c := range slices.Sorted(maps.Keys(mine.Contracts)) {
		theirs, ok := r.Contracts[c]
		if !ok {
			return fmt.Errorf("the binary does not speak %s", c)
		}
		span := func(v Revisions) *suitev1.Hello {
			return &suitev1.Hello{Daemon: r.Daemon, Contract: c, Revision: v.Revision, MinRevision: v.MinRevision}
		}
		if err := hello.Check(span(mine.Contracts[c]), span(theirs)); err != nil {
			return err
		}
	}
	return nil
}
