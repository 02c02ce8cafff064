//lint:file-ignore SA1019 net/http does not let the field pass that asks for a tunnel

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"

	"golang.org/x/net/http2"

	"retinue.dev/tests/suite"
)

// extendedConnect speaks that of HTTP/2 (RFC 8441).
func (c *cell) extendedConnect() error {
	out, in := io.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), suite.Patience)
	defer cancel()
	request, _ := http.NewRequestWithContext(ctx, http.MethodConnect, c.url("/ws"), out)
	request.Header.Set(":protocol", "websocket")
	request.Header.Set("Sec-WebSocket-Version", "13")
	transport := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		return c.dial(ctx)
	}}
	defer transport.CloseIdleConnections()
	r, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != 200 {
		return fmt.Errorf("status %d", r.StatusCode)
	}
	if err := pingPong(in, r.Body); err != nil {
		return err
	}
	in.Close()
	if _, err := r.Body.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("after our end: %v, want the other one", err)
	}
	return nil
}
