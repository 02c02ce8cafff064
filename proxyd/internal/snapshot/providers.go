package snapshot

import (
	"google.golang.org/protobuf/proto"

	"retinue.dev/proxyd/internal/filter/jwt"
	configv1 "retinue.dev/services/api/config/v1"
)

// jwtProvider is the built provider of a message. The filters that name it have one between them, and it stays, with its keys and the
// tokens that it has verified, while its message does.
func (r *build) jwtProvider(o *configv1.JwtProvider) (*jwt.Provider, error) {
	message, err := proto.MarshalOptions{Deterministic: true}.Marshal(o)
	if err != nil {
		return nil, err
	}
	key := "jwt_provider\x00" + o.GetName()
	if p := r.next.parts[key]; p != nil {
		return p.jwt, p.failed
	}
	p := r.previous.parts[key]
	if p == nil || p.key != string(message) {
		needs := &jwt.Needs{
			Workers: r.Workers, Cells: r.Stats.JwtProviders(r.ctx, []string{o.GetName()})[0], Secrets: r.Secrets, Cluster: r.handle, Ring: r.WantKeys,
		}
		if p != nil {
			needs.Before = p.jwt
		}
		p = &part{key: string(message)}
		p.jwt, p.failed = jwt.NewProvider(o, needs)
	}
	r.next.parts[key] = p
	if p.failed == nil && p.jwt.Remote != nil {
		r.next.JwtProviders = append(r.next.JwtProviders, p.jwt)
	}
	return p.jwt, p.failed
}

// keepProviders keeps those of a filter that stayed as it was.
func (r *build) keepProviders(f *configv1.JwtFilter) {
	for _, o := range f.GetProviders() {
		_, _ = r.jwtProvider(o) // it is the one that the filter has, and was built
	}
}
