package jwks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"

	"retinue.dev/libs/jwk"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/filter/jwt"
	"retinue.dev/proxyd/internal/health"
)

// Ask fetches a set from a host of a cluster. security is the cluster's TLS for that host, nil for none. Redirections are not followed.
func Ask(ctx context.Context, c *cluster.Cluster, h *cluster.Host, security *tls.Config, r *jwt.Remote) ([]byte, error) {
	transport, url := health.Transport(c, h, 0, security)
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+r.Path, nil)
	if err != nil {
		return nil, err
	}
	request.Host = r.Host
	request.Header.Set("User-Agent", "retinue/jwks")
	request.Header.Set("Accept", "application/json, application/jwk-set+json")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers with status %d", h.Address, response.StatusCode)
	}
	content, err := io.ReadAll(io.LimitReader(response.Body, jwk.MaxSize+1))
	if err == nil && len(content) > jwk.MaxSize {
		err = errors.New("the answer is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Address, err)
	}
	return content, nil
}
