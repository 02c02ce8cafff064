package control

import (
	"strings"

	"retinue.dev/proxyd/internal/counters"
)

// retireSeries tells statsd what the snapshot in force does not name any more.
func (s *Server) retireSeries() {
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	var named counters.Named
	for _, c := range current.Clusters {
		if c != nil {
			named.Clusters = append(named.Clusters, c.Name)
			for p, left := range c.Left {
				if left != nil {
					named.BreakersLeft[p] = append(named.BreakersLeft[p], c.Name)
				}
			}
		}
	}
	for _, o := range current.Objects {
		if f := o.GetFilter(); f != nil {
			kind, name, _ := strings.Cut(f.GetName(), ".")
			named.Filters = append(named.Filters, [2]string{kind, name})
			for _, p := range f.GetJwt().GetProviders() {
				named.Filters = append(named.Filters, [2]string{"jwt_provider", p.GetName()})
			}
		}
		if h := o.GetHttp(); h != nil {
			named.HTTP = append(named.HTTP, h.GetStatPrefix())
		}
		if l := o.GetListener(); l != nil {
			named.Listeners = append(named.Listeners, o.GetName())
			named.HTTP = append(named.HTTP, o.GetName())
			named.TCP = append(named.TCP, o.GetName())
			for _, chain := range l.GetFilterChains() {
				named.TCP = append(named.TCP, chain.GetTcp().GetStatPrefix())
			}
		}
	}
	if err := s.stats.Retire(s.following, named); err != nil {
		s.env.Log.Debug("statsd is not told of series that nobody names; the next snapshot tells it", "error", err)
	}
}
