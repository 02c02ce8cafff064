package hcm

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/tlstransport"
)

// clientCertMode is what becomes of X-Forwarded-Client-Cert: Envoy's forward_client_cert_details.
type clientCertMode uint8

const (
	certSanitize      clientCertMode = iota // taken off
	certForwardOnly                         // kept when the client has shown a certificate
	certAppendForward                       // kept then, with the client's certificate behind it
	certSanitizeSet                         // replaced by the client's certificate
	certAlwaysForward                       // kept
)

var clientCertModes = map[string]clientCertMode{
	"": certSanitize, "sanitize": certSanitize, "forward_only": certForwardOnly, "append_forward": certAppendForward, "sanitize_set": certSanitizeSet,
	"always_forward_only": certAlwaysForward,
}

// certDetails is what the header says of a certificate besides its hash.
type certDetails struct{ subject, uri, dns, cert, chain bool }

func newCertDetails(names []string) (d certDetails) {
	for _, name := range names {
		switch name {
		case "subject":
			d.subject = true
		case "uri":
			d.uri = true
		case "dns":
			d.dns = true
		case "cert":
			d.cert = true
		case "chain":
			d.chain = true
		}
	}
	return d
}

// clientCert makes X-Forwarded-Client-Cert what the configuration says. Who may add it decides what an application believes:
// nothing that a client has written gets through by default.
func (s *Shared) clientCert(r *header.Request, config *Config, c *conn.Conn) {
	if config.clientCert == certAlwaysForward {
		return
	}
	var element []byte
	if t, _ := c.Transport().(*tlstransport.Transport); t != nil && config.clientCert != certSanitize {
		element = t.PeerNote(&config.certDetails)
	}
	switch {
	case element != nil && config.clientCert == certForwardOnly:
	case element != nil && config.clientCert == certSanitizeSet:
		r.RemoveID(header.XForwardedClientCert)
		r.Add(header.XForwardedClientCert, nil, element)
	case element != nil && config.clientCert == certAppendForward:
		if at := r.Index(header.XForwardedClientCert, 0); at < 0 {
			r.Add(header.XForwardedClientCert, nil, element)
		} else { // fields of one name are one list: the last of them gets the new element
			for next := at; next >= 0; next = r.Index(header.XForwardedClientCert, next+1) {
				at = next
			}
			s.text = append(append(append(s.text[:0], r.ValueAt(at)...), ','), element...)
			r.SetAt(at, s.text)
		}
	case r.Has(header.XForwardedClientCert):
		r.RemoveID(header.XForwardedClientCert)
	}
}

// Note implements tlstransport.Noter: what the header says of a client's certificate, in Envoy's form and order; nil without one.
// By is who says so: the URIs of the certificate that this side has shown.
func (d *certDetails) Note(state *tls.ConnectionState, own *x509.Certificate) []byte {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	leaf := state.PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	var b []byte
	if own != nil {
		for _, u := range own.URIs {
			b = append(appendValue(append(b, "By="...), u.String()), ';')
		}
	}
	b = hex.AppendEncode(append(b, "Hash="...), sum[:])
	if d.cert {
		b = append(append(append(b, `;Cert="`...), tlstransport.EncodePEM(leaf)...), '"')
	}
	if d.chain {
		b = append(b, `;Chain="`...)
		for _, c := range state.PeerCertificates {
			b = append(b, tlstransport.EncodePEM(c)...)
		}
		b = append(b, '"')
	}
	if d.subject {
		b = append(appendQuoted(append(b, `;Subject="`...), leaf.Subject.String()), '"')
	}
	if d.uri {
		for _, u := range leaf.URIs {
			b = appendValue(append(b, ";URI="...), u.String())
		}
	}
	if d.dns {
		for _, name := range leaf.DNSNames {
			b = appendValue(append(b, ";DNS="...), name)
		}
	}
	return b
}

// appendValue quotes a value where its characters would end it.
func appendValue(b []byte, value string) []byte {
	for i := range len(value) {
		if x := value[i]; x == ',' || x == ';' || x == '=' || x == '"' || x <= ' ' || x >= 0x7f {
			return append(appendQuoted(append(b, '"'), value), '"')
		}
	}
	return append(b, value...)
}

// appendQuoted writes a value between quotes. A certificate's names are its owner's choice: quotes and backslashes are escaped, and
// what a header may not hold is left out.
func appendQuoted(b []byte, value string) []byte {
	for i := range len(value) {
		switch x := value[i]; {
		case x == '"' || x == '\\':
			b = append(b, '\\', x)
		case x >= ' ' && x != 0x7f:
			b = append(b, x)
		}
	}
	return b
}
