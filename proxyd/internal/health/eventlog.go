package health

import (
	"encoding/json"
	"os"
	"time"

	"retinue.dev/proxyd/internal/cluster"
)

// An event log gets one line of JSON for each change of a host: rare enough that the file is opened for each, so that whoever
// rotates logs need tell nobody, and two generations append whole lines.

// note is one change for the event log of its cluster's check or outlier detection.
type note struct {
	owner   *cluster.Cluster
	address string
	what    What
	detail  cluster.OutlierRule
	at      time.Time
}

// line is how it is written; the names of events are Envoy's.
type line struct {
	Time     string `json:"timestamp"`
	Event    string `json:"event"`
	Cluster  string `json:"cluster_name"`
	Host     string `json:"host"`
	Checker  string `json:"health_checker_type,omitempty"`
	Rule     string `json:"type,omitempty"` // of an ejection
	Enforced *bool  `json:"enforced,omitempty"`
}

var checkers = map[cluster.CheckKind]string{cluster.CheckHTTP: "HTTP", cluster.CheckTCP: "TCP", cluster.CheckGRPC: "GRPC"}

var eventNames = map[What]string{
	BecameHealthy: "add_healthy", BecameUnhealthy: "eject_unhealthy", BecameDegraded: "degraded_healthy_host",
	NoLongerDegraded: "no_longer_degraded_host", Ejected: "eject", Unejected: "uneject", Unenforced: "eject", Failure: "health_check_failure",
}

// write appends a note to its log, if there is one.
func (m *Monitor) write(n note) {
	path, name := "", eventNames[n.what]
	if name == "" {
		return
	}
	l := line{Time: n.at.UTC().Format(time.RFC3339Nano), Event: name, Cluster: n.owner.Name, Host: n.address}
	switch {
	case n.what == Ejected || n.what == Unejected || n.what == Unenforced:
		if n.owner.Outlier != nil {
			path = n.owner.Outlier.EventLog
		}
		if enforced := n.what == Ejected; n.what != Unejected {
			l.Rule, l.Enforced = n.detail.String(), &enforced
		}
	case n.owner.Check != nil:
		path, l.Checker = n.owner.Check.EventLog, checkers[n.owner.Check.Kind]
	}
	if path == "" {
		return
	}
	text, err := json.Marshal(l)
	if err == nil {
		err = appendLine(path, append(text, '\n'))
	}
	if err != nil {
		m.opt.Log.Error("an event log cannot be written", "path", path, "error", err)
	}
}

func appendLine(path string, text []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}
