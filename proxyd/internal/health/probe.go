package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"retinue.dev/proxyd/internal/cluster"
)

// prober asks one host whether it is well, again and again, over a connection that it keeps where it can. nil is yes; degraded
// tells that it should be spared all the same.
type prober interface {
	ask(ctx context.Context) (degraded bool, err error)
	close()
}

// keptBody is how much of an answer is read, to look at it and to keep the connection.
const keptBody = 64 << 10

// newProber makes one for a host of a cluster. security is the cluster's TLS, nil for none.
func newProber(owner *cluster.Cluster, h *cluster.Host, security *tls.Config) prober {
	c := owner.Check
	dial := dialer(h, c.Port)
	switch c.Kind {
	case cluster.CheckTCP:
		return &tcpProber{dial}
	case cluster.CheckGRPC:
		return newGRPC(c, owner.Name, dial, security)
	}
	t, url := Transport(owner, h, c.Port, security)
	authority := c.Host
	if authority == "" {
		authority = owner.Name
	}
	return &httpProber{transport: t, url: url + c.Path, host: authority, check: c}
}

// dialer connects to a host, at another port where that is not 0.
func dialer(h *cluster.Host, port uint16) func(context.Context) (net.Conn, error) {
	if h.Path != "" {
		return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", h.Path) }
	}
	return func(ctx context.Context) (net.Conn, error) {
		if places := h.Places(); places != nil {
			return dialAny(ctx, *places, port)
		}
		return dialIP(ctx, h.IP, port)
	}
}

func dialIP(ctx context.Context, a netip.AddrPort, port uint16) (net.Conn, error) {
	if port != 0 {
		a = netip.AddrPortFrom(a.Addr(), port)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", a.String())
}

// addressDelay is how long an address of a logical host has before the next one is tried beside it, as workers do.
const addressDelay = 300 * time.Millisecond

// dialAny connects to the first address that answers.
func dialAny(ctx context.Context, places []netip.AddrPort, port uint16) (net.Conn, error) {
	within, done := context.WithCancel(ctx)
	defer done() // of a connection that is there it ends nothing
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, len(places))
	running := 0
	var failed error
	for next := 0; next < len(places) || running > 0; {
		var late <-chan time.Time
		if next < len(places) {
			go func(a netip.AddrPort) {
				c, err := dialIP(within, a, port)
				results <- result{c, err}
			}(places[next])
			next++
			running++
			late = time.After(addressDelay)
		}
		select {
		case r := <-results:
			running--
			if r.err != nil {
				failed = r.err
				continue
			}
			go func() { // those that are too late
				for range running {
					if r := <-results; r.conn != nil {
						_ = r.conn.Close()
					}
				}
			}()
			return r.conn, nil
		case <-late:
		}
	}
	return nil, failed
}

// Transport speaks to one host of a cluster as the cluster's protocol and TLS have it, from the main side. url is what begins every
// URL; its host means nothing.
func Transport(owner *cluster.Cluster, h *cluster.Host, port uint16, security *tls.Config) (t *http.Transport, url string) {
	dial, http2 := dialer(h, port), owner.HTTP2 != nil && !owner.Negotiate
	t = &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		TLSClientConfig:     security,
		MaxIdleConnsPerHost: 1,
		Protocols:           new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetHTTP2(http2 && security != nil)
	t.Protocols.SetUnencryptedHTTP2(http2 && security == nil)
	if security != nil {
		return t, "https://" + placeholder
	}
	return t, "http://" + placeholder
}

// placeholder is the host of the URL that net/http wants; the connection goes where dial goes.
const placeholder = "host"

type tcpProber struct {
	dial func(context.Context) (net.Conn, error)
}

func (p *tcpProber) ask(ctx context.Context) (bool, error) {
	c, err := p.dial(ctx)
	if err != nil {
		return false, err
	}
	return false, c.Close()
}

func (p *tcpProber) close() {}

type httpProber struct {
	transport *http.Transport
	url, host string
	check     *cluster.Check
}

func (p *httpProber) ask(ctx context.Context) (bool, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return false, err
	}
	request.Host = p.host
	request.Header.Set("User-Agent", "retinue/health-check")
	response, err := p.transport.RoundTrip(request)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, keptBody))
	switch {
	case err != nil:
		return false, err
	case !slices.Contains(p.check.Statuses, response.StatusCode):
		return false, fmt.Errorf("status %d", response.StatusCode)
	case p.check.Body != "" && !strings.Contains(string(body), p.check.Body):
		return false, errors.New("the answer does not hold the expected text")
	}
	_, degraded := response.Header[degradedHeader]
	return degraded, nil
}

// degradedHeader is Envoy's, in net/http's spelling.
const degradedHeader = "X-Envoy-Degraded"

func (p *httpProber) close() { p.transport.CloseIdleConnections() }

type grpcProber struct {
	conn    *grpc.ClientConn
	service string
	failed  error
}

// ownAuthority lets the call's authority be another name than the one that the certificate is for, as it is for requests.
type ownAuthority struct {
	credentials.TransportCredentials
	name string // for the certificate
}

// ClientHandshake implements credentials.TransportCredentials.
func (a ownAuthority) ClientHandshake(ctx context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return a.TransportCredentials.ClientHandshake(ctx, a.name, c)
}

// Info implements credentials.TransportCredentials.
func (a ownAuthority) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: a.TransportCredentials.Info().SecurityProtocol} // and no name
}

// Clone implements credentials.TransportCredentials.
func (a ownAuthority) Clone() credentials.TransportCredentials {
	return ownAuthority{a.TransportCredentials.Clone(), a.name}
}

func newGRPC(c *cluster.Check, name string, dial func(context.Context) (net.Conn, error), security *tls.Config) *grpcProber {
	transport := insecure.NewCredentials()
	if security != nil {
		transport = ownAuthority{credentials.NewTLS(security), security.ServerName}
	}
	authority := c.Host
	if authority == "" {
		authority = name
	}
	conn, err := grpc.NewClient("passthrough:///"+placeholder, grpc.WithTransportCredentials(transport), grpc.WithAuthority(authority),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
	return &grpcProber{conn: conn, service: c.Service, failed: err}
}

func (p *grpcProber) ask(ctx context.Context) (bool, error) {
	if p.failed != nil {
		return false, p.failed
	}
	reply, err := grpc_health_v1.NewHealthClient(p.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: p.service}, grpc.WaitForReady(false))
	if err != nil {
		return false, err
	}
	if reply.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return false, errors.New(reply.GetStatus().String())
	}
	return false, nil
}

func (p *grpcProber) close() {
	if p.conn != nil {
		_ = p.conn.Close() // nothing is under way
	}
}
