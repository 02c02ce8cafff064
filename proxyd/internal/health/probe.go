package health

import (
	"bytes"
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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"retinue.dev/proxyd/internal/cluster"
)

// prober asks one host whether it is well, again and again, over a connection that it keeps where it can and may.
type prober interface {
	ask(ctx context.Context) answer
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
		return &tcpProber{dial, c, security}
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
	dial     func(context.Context) (net.Conn, error)
	check    *cluster.Check
	security *tls.Config // of what is sent and received
}

func (p *tcpProber) ask(ctx context.Context) answer {
	c, err := p.dial(ctx)
	if err != nil {
		return answer{failed: err}
	}
	defer c.Close()
	if len(p.check.Send) == 0 && len(p.check.Receive) == 0 {
		return answer{}
	}
	if p.security != nil {
		secure := tls.Client(c, p.security)
		if err := secure.HandshakeContext(ctx); err != nil {
			return answer{failed: err}
		}
		c = secure
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline) // of a connection that is open
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	return answer{failed: p.talk(c)}
}

// talk sends, and reads until everything that is to be received has come, in its order.
func (p *tcpProber) talk(c net.Conn) error {
	if _, err := c.Write(p.check.Send); err != nil {
		return err
	}
	got, piece := []byte(nil), make([]byte, 4<<10)
	for _, want := range p.check.Receive {
		for at := bytes.Index(got, want); ; at = bytes.Index(got, want) {
			if at >= 0 {
				got = got[at+len(want):]
				break
			}
			if len(got) > keptBody {
				return errors.New("the answer does not hold the expected bytes")
			}
			n, err := c.Read(piece)
			got = append(got, piece[:n]...)
			if err != nil && n == 0 {
				return fmt.Errorf("the expected bytes did not come: %w", err)
			}
		}
	}
	return nil
}

func (p *tcpProber) close() {}

type httpProber struct {
	transport *http.Transport
	url, host string
	check     *cluster.Check
}

func (p *httpProber) ask(ctx context.Context) answer {
	if p.check.NewConnections {
		defer p.transport.CloseIdleConnections()
	}
	request, err := http.NewRequestWithContext(ctx, p.check.Method, p.url, nil)
	if err != nil {
		return answer{failed: err}
	}
	request.Host = p.host
	request.Header.Set("User-Agent", "retinue/health-check")
	for _, h := range p.check.Headers {
		request.Header.Set(h[0], h[1])
	}
	response, err := p.transport.RoundTrip(request)
	if err != nil {
		return answer{failed: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, keptBody))
	_, degraded := response.Header[degradedHeader]
	_, fails := response.Header[failHeader]
	switch code := response.StatusCode; {
	case err != nil:
		return answer{failed: err}
	case fails:
		return answer{failed: errors.New("the answer says x-envoy-immediate-health-check-fail"), answered: true, decides: true}
	case !slices.Contains(p.check.Statuses, code):
		return answer{failed: fmt.Errorf("status %d", code), answered: true, decides: !slices.Contains(p.check.Retriable, code)}
	case p.check.Body != "" && !strings.Contains(string(body), p.check.Body):
		return answer{failed: errors.New("the answer does not hold the expected text"), answered: true, decides: true}
	}
	return answer{degraded: degraded}
}

// Envoy's headers of answers, in net/http's spelling.
const (
	degradedHeader = "X-Envoy-Degraded"
	failHeader     = "X-Envoy-Immediate-Health-Check-Fail"
)

func (p *httpProber) close() { p.transport.CloseIdleConnections() }

type grpcProber struct {
	conn    *grpc.ClientConn
	service string
	failed  error
	begin   func() (*grpc.ClientConn, error) // for each check, where connections are not kept; else nil
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
	begin := func() (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+placeholder, grpc.WithTransportCredentials(transport), grpc.WithAuthority(authority),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
	}
	if c.NewConnections {
		return &grpcProber{service: c.Service, begin: begin}
	}
	conn, err := begin()
	return &grpcProber{conn: conn, service: c.Service, failed: err}
}

func (p *grpcProber) ask(ctx context.Context) answer {
	conn := p.conn
	if p.begin != nil {
		made, err := p.begin()
		if err != nil {
			return answer{failed: err}
		}
		defer made.Close()
		conn = made
	}
	if p.failed != nil {
		return answer{failed: p.failed}
	}
	reply, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: p.service}, grpc.WaitForReady(false))
	switch code := status.Code(err); {
	case code == codes.Unavailable, code == codes.DeadlineExceeded, code == codes.Canceled: // there may be no server
		return answer{failed: err}
	case err != nil:
		return answer{failed: err, answered: true, decides: true}
	case reply.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return answer{failed: errors.New(reply.GetStatus().String()), answered: true, decides: true}
	}
	return answer{}
}

func (p *grpcProber) close() {
	if p.conn != nil {
		_ = p.conn.Close() // nothing is under way
	}
}
