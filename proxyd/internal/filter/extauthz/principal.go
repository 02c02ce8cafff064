package extauthz

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"

	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
)

// Fields of AttributeContext.Peer.
const (
	peerPrincipal   = 4
	peerCertificate = 5
)

// names are the parts of the Peers of both sides that their certificates tell; nil where there are none. They are made once a connection.
func (f *Filter) names(s *stream.Stream) (theirs, ours []byte) {
	p, _ := s.Downstream().(stream.Peered)
	if p == nil {
		return nil, nil
	}
	t, _ := p.Conn().Transport().(*tlstransport.Transport)
	if t == nil {
		return nil, nil
	}
	note := t.PeerNote(f)
	if len(note) < 4 {
		return nil, nil
	}
	at := 4 + binary.BigEndian.Uint32(note)
	return note[4:at], note[at:]
}

// Note implements tlstransport.Noter: the length of the client's part, that part, and ours.
func (f *Filter) Note(state *tls.ConnectionState, own *x509.Certificate) []byte {
	note := make([]byte, 4)
	if len(state.PeerCertificates) > 0 {
		leaf := state.PeerCertificates[0]
		note = message.Text(note, peerPrincipal, []byte(principal(leaf)))
		if f.certificate {
			note = message.Text(note, peerCertificate, []byte(tlstransport.EncodePEM(leaf)))
		}
	}
	binary.BigEndian.PutUint32(note, uint32(len(note)-4))
	if own != nil {
		note = message.Text(note, peerPrincipal, []byte(principal(own)))
	}
	return note
}

// principal is the name in a certificate: its first URI, else its first DNS name, else its subject, as in Envoy.
func principal(c *x509.Certificate) string {
	switch {
	case len(c.URIs) > 0:
		return c.URIs[0].String()
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	}
	return c.Subject.String()
}
