package control

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

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

// bell is rung by workers, and heard by a goroutine of the main side: an eventfd, since workers touch no channel.
type bell struct {
	fd    int
	event *os.File
}

func newBell(name string) (*bell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &bell{fd, os.NewFile(uintptr(fd), name)}, nil
}

// ringing is what an eventfd is told; it never changes.
var ringing = binary.NativeEndian.AppendUint64(nil, 1)

// ring never blocks: a bell that rings already is EAGAIN.
func (b *bell) ring() { _, _ = unix.Write(b.fd, ringing) }

// hear calls f each time that it has rung, until it is closed.
func (b *bell) hear(f func()) {
	var n [8]byte
	for {
		if _, err := b.event.Read(n[:]); err != nil {
			return
		}
		f()
	}
}
