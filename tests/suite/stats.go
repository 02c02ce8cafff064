package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// Stat is the sum of the series of a name whose labels hold what is given: "listener=web". A histogram counts its observations.
func (s *Suite) Stat(name string, labels ...string) float64 {
	s.t.Helper()
	value, err := s.stat(name, labels)
	if err != nil {
		s.t.Fatal(err)
	}
	return value
}

// series is what `retinue stats --json` says of one series.
type series struct {
	Name   string
	Kind   string
	Labels []struct{ Name, Value string }
	Value  float64
}

func (s *Suite) query(match string) ([]series, error) {
	cmd := exec.Command(Binary(s.t, "retinue"), "stats", "--json", "--match", match, "--dir", s.Dir)
	var told bytes.Buffer
	cmd.Stderr = &told
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("retinue stats: %w: %s%s", err, out, told.String())
	}
	var reply struct{ Series []series }
	if err := json.Unmarshal(out, &reply); err != nil {
		return nil, fmt.Errorf("retinue stats: %w: %s", err, out)
	}
	return reply.Series, nil
}

func (s *Suite) stat(name string, labels []string) (float64, error) {
	all, err := s.query(name)
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for _, one := range all {
		if one.Name == name && one.has(labels) {
			sum, found = sum+one.Value, true
		}
	}
	if !found {
		return 0, fmt.Errorf("there is no series %s %v", name, labels)
	}
	return sum, nil
}

// Without tells that no series has the name and labels.
func (s *Suite) Without(name string, labels ...string) bool {
	s.t.Helper()
	all, err := s.query(name)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, one := range all {
		if one.Name == name && one.has(labels) {
			return false
		}
	}
	return true
}

func (one *series) has(labels []string) bool {
	for _, want := range labels {
		key, value, _ := strings.Cut(want, "=")
		found := false
		for _, l := range one.Labels {
			found = found || l.Name == key && l.Value == value
		}
		if !found {
			return false
		}
	}
	return true
}

// Counters are all series that only ever grow, by name and labels. proxyd's alone: the other daemons' own begin with them.
func (s *Suite) Counters() map[string]float64 {
	s.t.Helper()
	var all []series
	s.Eventually("the counters are told", func() (err error) { // statsd may have been killed a moment ago
		all, err = s.query("")
		return err
	})
	out := map[string]float64{}
	for _, one := range all {
		if one.Kind != "KIND_GAUGE" {
			out[fmt.Sprintf("%s%v", one.Name, one.Labels)] += one.Value
		}
	}
	return out
}

// AwaitStat waits until Stat is at least want.
func (s *Suite) AwaitStat(want float64, name string, labels ...string) {
	s.t.Helper()
	s.Eventually(fmt.Sprintf("%s %v reaches %v", name, labels, want), func() error {
		got, err := s.stat(name, labels)
		if err == nil && got < want {
			err = fmt.Errorf("it is %v", got)
		}
		return err
	})
}
