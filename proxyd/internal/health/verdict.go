package health

import (
	"time"

	"retinue.dev/proxyd/internal/cluster"
)

// Verdict is what is known of a host that is not simply well, for a process that comes after this one.
type Verdict struct {
	Cluster   string    `json:"cluster"`
	Address   string    `json:"address"`
	Checked   bool      `json:"checked,omitempty"` // by an active check
	Failing   bool      `json:"failing,omitempty"`
	Degraded  bool      `json:"degraded,omitempty"`
	Ejected   bool      `json:"ejected,omitempty"`
	Ejections int       `json:"ejections,omitempty"` // in a row
	Until     time.Time `json:"until,omitzero"`      // end of the ejection
}

// Verdicts is what is known of the hosts, in no order. Hosts that were never asked and never ejected are left out.
func (m *Monitor) Verdicts() (list []Verdict) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.clusters {
		for _, member := range w.cluster.Hosts.Hosts {
			v := Verdict{Cluster: w.cluster.Name, Address: member.Address}
			if h := w.hosts[member.Address]; h != nil {
				v.Checked, v.Failing, v.Degraded = h.checked, h.failing, h.degraded
			}
			if w.detector != nil {
				if o := w.detector.hosts[member.Address]; o != nil {
					v.Ejected, v.Ejections, v.Until = o.ejected, o.ejections, o.until
				}
			}
			if v.Checked || v.Ejections > 0 {
				list = append(list, v)
			}
		}
	}
	return list
}

// Inherit makes hosts begin with what another process knew of them: a host that failed its checks there takes no requests here
// until it has passed as many as the threshold says. Call it before the first Set.
func (m *Monitor) Inherit(list []Verdict) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.former = map[string]map[string]Verdict{}
	for _, v := range list {
		if m.former[v.Cluster] == nil {
			m.former[v.Cluster] = map[string]Verdict{}
		}
		m.former[v.Cluster][v.Address] = v
	}
}

// Drain says which hosts take no requests by command, by cluster and address: all of them. Set makes it so.
func (m *Monitor) Drain(drained map[string]map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drained = drained
}

// Watched tells what is known of a member: for people.
func (m *Monitor) Watched(handle cluster.Handle, address string) (v Verdict, drained bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.clusters[handle]
	if w == nil {
		return Verdict{}, false
	}
	if h := w.hosts[address]; h != nil {
		v.Checked, v.Failing, v.Degraded = h.checked, h.failing, h.degraded
	}
	if w.detector != nil {
		v.Ejected = w.detector.out(address)
	}
	return v, w.drained[address]
}
