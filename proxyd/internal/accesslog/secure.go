package accesslog

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"net/url"
	"strings"

	"retinue.dev/libs/logformat"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
)

// maxShown bounds one value that a certificate brings, in bytes.
const maxShown = 4 << 10

// note is what the client's handshake has shown, for the operators of the program: put into words once a connection and kept with it.
func (p *Program) note(s *stream.Stream) []byte {
	var transport conn.Transport
	switch down := s.Downstream().(type) {
	case stream.Peered:
		transport = down.Conn().Transport()
	case stream.Shown:
		transport = down.Transport()
	}
	if t, _ := transport.(*tlstransport.Transport); t != nil {
		return t.PeerNote(p)
	}
	return nil
}

// Note implements tlstransport.Noter: the values in the order of their slots, each behind its length in two bytes.
func (p *Program) Note(state *tls.ConnectionState, own *x509.Certificate) []byte {
	var peer *x509.Certificate
	if len(state.PeerCertificates) > 0 {
		peer = state.PeerCertificates[0]
	}
	var out []byte
	for _, id := range p.shown {
		value := shown(id, state, peer, own)
		value = value[:min(len(value), maxShown)]
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(value))), value...)
	}
	return out
}

// part is the value of a slot, empty for none.
func part(note []byte, slot int) []byte {
	for ; len(note) >= 2; slot-- {
		n := int(binary.BigEndian.Uint16(note))
		if slot == 0 {
			return note[2 : 2+n]
		}
		note = note[2+n:]
	}
	return nil
}

func shown(id logformat.ID, state *tls.ConnectionState, peer, own *x509.Certificate) string {
	switch id {
	case logformat.RequestedServerName:
		return state.ServerName
	case logformat.DownstreamTLSVersion:
		return versionName(state.Version)
	case logformat.DownstreamTLSCipher:
		return cipherName(state.CipherSuite)
	case logformat.DownstreamLocalSubject, logformat.DownstreamLocalURISAN, logformat.DownstreamLocalDNSSAN:
		peer = own
	}
	if peer == nil {
		return ""
	}
	switch id {
	case logformat.DownstreamPeerSubject, logformat.DownstreamLocalSubject:
		return peer.Subject.String()
	case logformat.DownstreamPeerIssuer:
		return peer.Issuer.String()
	case logformat.DownstreamPeerSerial:
		return peer.SerialNumber.Text(16)
	case logformat.DownstreamPeerFingerprint256:
		sum := sha256.Sum256(peer.Raw)
		return hex.EncodeToString(sum[:])
	case logformat.DownstreamPeerURISAN, logformat.DownstreamLocalURISAN:
		return uris(peer.URIs)
	case logformat.DownstreamPeerDNSSAN, logformat.DownstreamLocalDNSSAN:
		return strings.Join(peer.DNSNames, ",")
	}
	return ""
}

func versionName(version uint16) string {
	switch version {
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return ""
}

func cipherName(id uint16) string {
	if id == 0 {
		return ""
	}
	return tls.CipherSuiteName(id)
}

func uris(list []*url.URL) string {
	var out []string
	for _, u := range list {
		out = append(out, u.String())
	}
	return strings.Join(out, ",")
}
