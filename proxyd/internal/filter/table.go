// Package filter holds the HTTP filters that are built in and the table that names them; the last of every chain is the
// router, which sends the request to a cluster, or answers as its route says. Filters with more to them have rooms below this
// one. docs/decisions/0040-filters.md says how they are configured, composed and kept.
package filter

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/basicauth"
	"retinue.dev/proxyd/internal/filter/bodyfilter"
	"retinue.dev/proxyd/internal/filter/compress"
	"retinue.dev/proxyd/internal/filter/cors"
	"retinue.dev/proxyd/internal/filter/decompress"
	"retinue.dev/proxyd/internal/filter/extauthz"
	"retinue.dev/proxyd/internal/filter/fault"
	"retinue.dev/proxyd/internal/filter/globalratelimit"
	"retinue.dev/proxyd/internal/filter/healthcheck"
	"retinue.dev/proxyd/internal/filter/ipfilter"
	"retinue.dev/proxyd/internal/filter/jwt"
	"retinue.dev/proxyd/internal/filter/ratelimit"
	"retinue.dev/proxyd/internal/filter/rbac"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// Env is what filters are built with, by the main side, once for each version of their object.
type Env struct {
	Context context.Context
	Workers int
	Stats   *counters.Set
	// Format compiles a header value with operators.
	Format func(format string) (Formatter, error)
	// Secrets are those in force; a filter that uses some takes newer ones by Filter.Update.
	Secrets *tlstransport.Secrets
	// Failing tells that the process is about to go and nobody takes its place: its health checks fail.
	Failing *atomic.Bool
	// Pools are the workers' upstream sides, for filters that make requests of their own; empty where nothing will run.
	Pools []*upstream.Manager
	// Cluster finds the handle of a cluster of the snapshot.
	Cluster func(name string) (cluster.Handle, bool)
	// JwtProvider makes or finds a provider of tokens, which filters share.
	JwtProvider func(*configv1.JwtProvider) (*jwt.Provider, error)
}

// Filter is one built object. It is shared by every list that names it and by all workers, and lives on over snapshots in which
// its object stays the same.
type Filter struct {
	// HTTP makes the filter of a stream.
	HTTP stream.Factory
	// Connection judges connections; nil: it cannot. Certified tells that it asks for the client's certificate.
	Connection listener.Gate
	Certified  bool
	// Update gives it new secrets; nil: it has none.
	Update func(*tlstransport.Secrets) error
}

// Build makes a filter. It is the table of them all: a new one is one case.
func Build(f *configv1.Filter, env *Env) (*Filter, error) {
	_, name, _ := strings.Cut(f.GetName(), ".")
	names := []string{name}
	switch k := f.GetKind().(type) {
	case *configv1.Filter_Header:
		factory, err := newHeaderFilter(k.Header, env)
		return &Filter{HTTP: factory}, err
	case *configv1.Filter_RateLimit:
		built, err := ratelimit.New(k.RateLimit, env.Workers, env.Stats.RateLimits(env.Context, names)[0])
		return &Filter{HTTP: built, Connection: built}, err
	case *configv1.Filter_Fault:
		built, err := fault.New(k.Fault, env.Workers, env.Stats.Faults(env.Context, names)[0])
		return &Filter{HTTP: built}, err
	case *configv1.Filter_Cors:
		built, err := cors.New(k.Cors, env.Workers, env.Stats.CORS(env.Context, names)[0])
		return &Filter{HTTP: built}, err
	case *configv1.Filter_Rbac:
		built, err := rbac.New(k.Rbac, env.Workers, env.Stats.RBACs(env.Context, names)[0])
		if err != nil {
			return nil, err
		}
		return &Filter{HTTP: built, Connection: built, Certified: built.Certified()}, nil
	case *configv1.Filter_Ip:
		built, err := ipfilter.New(k.Ip, env.Stats.IPs(env.Context, names)[0])
		return &Filter{HTTP: built, Connection: built}, err
	case *configv1.Filter_Buffer:
		built, err := bodyfilter.NewBuffer(k.Buffer)
		return &Filter{HTTP: built}, err
	case *configv1.Filter_BodyLimit:
		built, err := bodyfilter.NewLimit(k.BodyLimit, env.Workers)
		return &Filter{HTTP: built}, err
	case *configv1.Filter_BasicAuth:
		built, err := basicauth.New(k.BasicAuth, env.Secrets, env.Stats.BasicAuths(env.Context, names)[0])
		return &Filter{HTTP: built, Update: built.Update}, err
	case *configv1.Filter_HealthCheck:
		members := func(cluster string) *counters.Cluster {
			return env.Stats.Clusters(env.Context, []string{cluster})[0][0]
		}
		built, err := healthcheck.New(k.HealthCheck, env.Failing, members, env.Stats.HealthChecks(env.Context, names)[0])
		return &Filter{HTTP: built}, err
	case *configv1.Filter_Compress:
		built, err := compress.New(k.Compress, env.Workers, env.Stats.Compressors(env.Context, names)[0])
		return &Filter{HTTP: built}, err
	case *configv1.Filter_ExtAuthz:
		built, err := extauthz.New(k.ExtAuthz, &extauthz.Needs{
			Workers: env.Workers, Cells: env.Stats.ExtAuthz(env.Context, names)[0], Pools: env.Pools, Cluster: env.Cluster,
			Value: func(format string) (extauthz.Value, error) { return env.Format(format) },
		})
		return &Filter{HTTP: built}, err
	case *configv1.Filter_GlobalRateLimit:
		built, err := globalratelimit.New(k.GlobalRateLimit, &globalratelimit.Needs{
			Workers: env.Workers, Cells: env.Stats.GlobalRateLimits(env.Context, names)[0], Pools: env.Pools, Cluster: env.Cluster,
			Value: func(format string) (globalratelimit.Value, error) { return env.Format(format) },
		})
		return &Filter{HTTP: built}, err
	case *configv1.Filter_Jwt:
		built, err := jwt.New(k.Jwt, env.Workers, env.Stats.JWTs(env.Context, names)[0], env.JwtProvider)
		return &Filter{HTTP: built, Update: built.Update}, err
	case *configv1.Filter_Decompress:
		built, err := decompress.New(k.Decompress, env.Workers, env.Stats.Decompressors(env.Context, names)[0])
		return &Filter{HTTP: built}, err
	}
	return nil, fmt.Errorf("filter %q is of a type that this proxyd does not have", f.GetName())
}
