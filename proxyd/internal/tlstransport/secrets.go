package tlstransport

import (
	"crypto/tls"
	"fmt"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

// Secrets is what configd sends beside the snapshots, read. Immutable. It is never logged.
type Secrets struct {
	Certificates map[string]*tls.Certificate
	Files        map[string][]byte
	TicketKeys   [][]byte // newest first
}

// ParseSecrets reads it.
func ParseSecrets(message *configv1.Secrets) (*Secrets, error) {
	s := &Secrets{Certificates: map[string]*tls.Certificate{}, Files: map[string][]byte{}, TicketKeys: message.GetTicketKeys()}
	for _, c := range message.GetCertificates() {
		pair, err := tls.X509KeyPair(c.GetChainPem(), c.GetKeyPem())
		if err != nil {
			return nil, fmt.Errorf("certificate %q: %w", c.GetName(), err)
		}
		s.Certificates[c.GetName()] = &pair
	}
	for _, f := range message.GetFiles() {
		s.Files[f.GetName()] = f.GetContent()
	}
	for i, key := range s.TicketKeys {
		if len(key) < 32 {
			return nil, fmt.Errorf("session ticket key %d has %d bytes and not 32", i, len(key))
		}
	}
	return s, nil
}

// Expiries tells until when each certificate, or the one that signed it, is valid.
func (s *Secrets) Expiries() map[string]time.Time {
	list := map[string]time.Time{}
	for name, c := range s.Certificates {
		list[name] = c.Leaf.NotAfter
	}
	return list
}
