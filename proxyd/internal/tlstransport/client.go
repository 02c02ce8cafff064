package tlstransport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"

	"retinue.dev/proxyd/internal/counters"
	configv1 "retinue.dev/services/api/config/v1"
)

// sessionsKept is how many servers' sessions a cluster remembers.
const sessionsKept = 1024

// Client is the TLS of one cluster: as Server, for what is dialled.
type Client struct {
	settings *configv1.UpstreamTls
	alpn     []string
	current  atomic.Pointer[tls.Config]
}

// NewClient makes it. alpn is what the cluster's protocol offers.
func NewClient(settings *configv1.UpstreamTls, alpn []string, secrets *Secrets) (*Client, error) {
	c := &Client{settings: settings, alpn: alpn}
	if own := settings.GetAlpn(); len(own) > 0 {
		c.alpn = own
	}
	return c, c.Update(secrets)
}

// Config is what a handshake that begins now uses; the server's certificate must be for name where the settings have none.
func (c *Client) Config(name string) *tls.Config {
	config := c.current.Load()
	if config.ServerName != "" || name == "" || config.InsecureSkipVerify && net.ParseIP(name) != nil {
		return config
	}
	config = config.Clone()
	config.ServerName = name
	return config
}

// Update takes new secrets. On an error what was before stays. Sessions are forgotten: crypto/tls resumes them by what was
// verified then, and whom to trust may have changed.
func (c *Client) Update(secrets *Secrets) error {
	if secrets == nil {
		secrets = &Secrets{}
	}
	t := c.settings
	config := &tls.Config{
		ServerName: t.GetSni(), NextProtos: c.alpn, ClientSessionCache: tls.NewLRUClientSessionCache(sessionsKept),
		DynamicRecordSizingDisabled: true,
	}
	var err error
	if config.MinVersion, config.MaxVersion, err = versions(t.GetMinVersion(), t.GetMaxVersion()); err != nil {
		return err
	}
	if name := t.GetCertificate(); name != "" {
		own := secrets.Certificates[name]
		if own == nil {
			return fmt.Errorf("certificate %q has not arrived", name)
		}
		config.Certificates = []tls.Certificate{*own}
	}
	var authorities []*x509.Certificate
	if file := t.GetCaFile(); file != "" {
		if config.RootCAs, authorities, err = parsePool(secrets.Files[file]); err != nil {
			return fmt.Errorf("ca_file: %s: %w", file, err)
		}
	}
	v := &verifier{}
	for _, name := range t.GetVerifySan() {
		v.names = append(v.names, newSAN(name))
	}
	if file := t.GetCrlFile(); file != "" {
		if v.crls, err = parseCRLs(secrets.Files[file], authorities); err != nil {
			return fmt.Errorf("crl_file: %s: %w", file, err)
		}
	}
	switch {
	case t.GetInsecure():
		config.InsecureSkipVerify = true
	case len(v.names) > 0:
		// The names that are accepted are not the one that is asked for: the chain is verified here, without a name.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error { return v.chain(state, config.RootCAs) }
	case len(v.crls) > 0:
		config.VerifyConnection = v.verify
	}
	c.current.Store(config)
	return nil
}

// chain verifies the server's chain up to the roots, whatever its names, and then what verify does.
func (v *verifier) chain(state tls.ConnectionState, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return &VerifyError{"the server has shown no certificate", counters.SSLFailVerifyNoCert}
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	chains, err := state.PeerCertificates[0].Verify(options)
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	state.VerifiedChains = chains
	return v.verify(state)
}

// Reason puts why a handshake with a server failed into words for the access log; "" when it did not.
func (t *Transport) Reason() string {
	if t.err == nil {
		return ""
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(t.err, &unknown) {
		return "certificate signed by an unknown authority"
	}
	return t.err.Error()
}

// ALPN is what a client offers for a cluster's protocol.
func ALPN(protocol string, speaks []string) []string {
	var list []string
	switch protocol {
	case "http2":
		list = []string{"h2"}
	case "auto":
		list = []string{"h2", "http/1.1"}
	default:
		list = []string{"http/1.1"}
	}
	return slices.DeleteFunc(list, func(p string) bool { return !slices.Contains(speaks, p) })
}
