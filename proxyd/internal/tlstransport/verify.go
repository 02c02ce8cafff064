package tlstransport

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"retinue.dev/proxyd/internal/counters"
)

// VerifyError is why a peer's certificate, which the authority has signed, is refused all the same.
type VerifyError struct {
	Reason string
	cell   int
}

func (e *VerifyError) Error() string { return "tls: " + e.Reason }

func isCertificateError(err error) bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &certificate)
}

// isMissingCertificate tells a client without the certificate that it must have; crypto/tls has no value for it.
func isMissingCertificate(err error) bool {
	return strings.Contains(err.Error(), "client didn't provide a certificate")
}

// verifier holds what is checked of a peer's certificate after its chain. It is called from VerifyConnection, which runs on
// resumption too.
type verifier struct {
	names []san
	crls  []*x509.RevocationList
}

// san is one name that a certificate may have: a DNS name, "*.suffix", an address, a URI.
type san struct {
	text   string
	suffix string // of "*.suffix", with the dot
	ip     netip.Addr
}

func newSAN(text string) san {
	s := san{text: text}
	if rest, ok := strings.CutPrefix(text, "*"); ok && strings.HasPrefix(rest, ".") {
		s.suffix = strings.ToLower(rest)
	}
	s.ip, _ = netip.ParseAddr(text)
	return s
}

func (s *san) matches(c *x509.Certificate) bool {
	for _, name := range c.DNSNames {
		name = strings.ToLower(name)
		if name == strings.ToLower(s.text) {
			return true
		}
		if s.suffix != "" && !strings.HasPrefix(name, "*") {
			if _, rest, found := strings.Cut(name, "."); found && "."+rest == s.suffix { // one label, as in certificates
				return true
			}
		}
	}
	for _, uri := range c.URIs {
		if uri.String() == s.text {
			return true
		}
	}
	for _, email := range c.EmailAddresses {
		if email == s.text {
			return true
		}
	}
	if s.ip.IsValid() {
		for _, ip := range c.IPAddresses {
			if a, ok := netip.AddrFromSlice(ip); ok && a.Unmap() == s.ip {
				return true
			}
		}
	}
	return false
}

// verify checks the names and the revocation of a peer that has shown a certificate.
func (v *verifier) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil // whether one is required is the handshake's
	}
	leaf := state.PeerCertificates[0]
	if len(v.names) > 0 {
		found := false
		for i := range v.names {
			found = found || v.names[i].matches(leaf)
		}
		if !found {
			return &VerifyError{fmt.Sprintf("the certificate %q has none of the names that are accepted", leaf.Subject), counters.SSLFailVerifySAN}
		}
	}
	if len(v.crls) == 0 {
		return nil
	}
	chains := state.VerifiedChains
	if len(chains) == 0 {
		chains = [][]*x509.Certificate{state.PeerCertificates}
	}
	for _, chain := range chains { // one chain without a revoked certificate is enough
		revoked := false
		for _, c := range chain {
			revoked = revoked || v.revoked(c)
		}
		if !revoked {
			return nil
		}
	}
	return &VerifyError{fmt.Sprintf("the certificate %q, or one that signed it, is revoked", leaf.Subject), counters.SSLFailVerifyRevoked}
}

func (v *verifier) revoked(c *x509.Certificate) bool {
	for _, list := range v.crls {
		if string(list.RawIssuer) != string(c.RawIssuer) {
			continue
		}
		for i := range list.RevokedCertificateEntries {
			if list.RevokedCertificateEntries[i].SerialNumber.Cmp(c.SerialNumber) == 0 {
				return true
			}
		}
	}
	return false
}

// parsePool reads PEM certificates; at least one.
func parsePool(content []byte) (*x509.CertPool, []*x509.Certificate, error) {
	pool := x509.NewCertPool()
	var list []*x509.Certificate
	for len(content) > 0 {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		pool.AddCert(c)
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, nil, errors.New("it holds no PEM certificate")
	}
	return pool, list, nil
}

// parseCRLs reads PEM revocation lists. One that an authority at hand has issued must carry its signature.
func parseCRLs(content []byte, authorities []*x509.Certificate) (lists []*x509.RevocationList, err error) {
	for len(content) > 0 {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			continue
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		for _, a := range authorities {
			if string(a.RawSubject) == string(list.RawIssuer) {
				if err := list.CheckSignatureFrom(a); err != nil {
					return nil, err
				}
			}
		}
		lists = append(lists, list)
	}
	if len(lists) == 0 {
		return nil, errors.New("it holds no PEM revocation list (X509 CRL)")
	}
	return lists, nil
}
