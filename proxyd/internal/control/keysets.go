package control

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/jwt"
	"retinue.dev/proxyd/internal/jwks"
)

// newFollower makes what fetches the key sets of providers of tokens. Workers find them published.
func (s *Server) newFollower() *jwks.Follower {
	return jwks.New(jwks.Options{
		Log: s.env.Log, Dir: s.env.StateDir, Fetch: s.fetchKeys,
		Settle: func(p *jwt.Provider) { s.loops.each(func(l *loop) { p.Settle(l.ID) }) },
		Count: func(p *jwt.Provider, fetched bool) { // in the cells of worker 0, which are its own to write
			cell := counters.JwtProviderFetchFailed
			if fetched {
				cell = counters.JwtProviderFetchSuccess
			}
			s.loops.post(func() { p.Cells[0][cell]++ })
		},
	})
}

// fetchKeys asks one of the cluster's hosts that take requests.
func (s *Server) fetchKeys(ctx context.Context, r *jwt.Remote) ([]byte, error) {
	s.ops.Lock()
	clusters := s.clusters
	s.ops.Unlock()
	if int(r.Cluster) >= len(clusters) || clusters[r.Cluster] == nil {
		return nil, errors.New("its cluster is gone")
	}
	config := clusters[r.Cluster]
	hosts := config.Hosts.Hosts
	if len(hosts) == 0 {
		return nil, errors.New("its cluster has no host that takes requests")
	}
	host := hosts[rand.IntN(len(hosts))]
	var security *tls.Config
	if config.TLS != nil {
		security = config.TLS.Config(host.ServerName()).Clone()
	}
	return jwks.Ask(ctx, config.Cluster, host, security, r)
}
