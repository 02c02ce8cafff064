package tlstransport

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

// Server is the TLS of one filter chain. Main makes it and gives it new secrets; workers take the configuration of a handshake
// from it. A handshake ends with what it began with, and what is established is not touched by new secrets.
type Server struct {
	HandshakeTimeout time.Duration

	settings *configv1.Tls
	name     string // of the listener and the chain: part of what tickets are bound to
	alpn     []string
	current  atomic.Pointer[tls.Config]
}

// defaultHandshakeTimeout is for a configuration that says nothing.
const defaultHandshakeTimeout = 15 * time.Second

// NewServer makes the TLS of the chain of that name (listener and chain). speaks is the ALPN names that its network filter can
// honour; nil: all.
func NewServer(name string, settings *configv1.Tls, speaks []string, secrets *Secrets) (*Server, error) {
	s := &Server{settings: settings, name: name, HandshakeTimeout: defaultHandshakeTimeout}
	if ms := settings.GetHandshakeTimeoutMs(); ms > 0 {
		s.HandshakeTimeout = time.Duration(ms) * time.Millisecond
	}
	for _, protocol := range settings.GetAlpn() {
		if speaks == nil || slices.Contains(speaks, protocol) {
			s.alpn = append(s.alpn, protocol)
		}
	}
	return s, s.Update(secrets)
}

// Config is what a handshake that begins now uses.
func (s *Server) Config() *tls.Config { return s.current.Load() }

// Update takes new secrets. On an error what was before stays.
func (s *Server) Update(secrets *Secrets) error {
	if secrets == nil {
		return errors.New("the certificates have not arrived")
	}
	t := s.settings
	config := &tls.Config{
		NextProtos:                  s.alpn,
		DynamicRecordSizingDisabled: true, // a proxy's responses are whole; small first records cost more than they hasten
		SessionTicketsDisabled:      !t.GetSessionTickets(),
	}
	var err error
	if config.MinVersion, config.MaxVersion, err = versions(t.GetMinVersion(), t.GetMaxVersion()); err != nil {
		return err
	}
	if err := s.certificates(config, secrets); err != nil {
		return err
	}
	binding := sha256.New()
	fmt.Fprintf(binding, "%s\x00%t\x00%q", s.name, t.GetRequireClientCert(), t.GetVerifySan())
	var authorities []*x509.Certificate
	if file := t.GetClientCaFile(); file != "" {
		content := secrets.Files[file]
		if config.ClientCAs, authorities, err = parsePool(content); err != nil {
			return fmt.Errorf("client_ca: %s: %w", file, err)
		}
		config.ClientAuth = tls.VerifyClientCertIfGiven
		if t.GetRequireClientCert() {
			config.ClientAuth = tls.RequireAndVerifyClientCert
		}
		fmt.Fprintf(binding, "\x00%x", sha256.Sum256(content))
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
	if len(v.names)+len(v.crls) > 0 {
		config.VerifyConnection = v.verify
	}
	if len(secrets.TicketKeys) > 0 {
		config.SetSessionTicketKeys(ticketKeys(secrets.TicketKeys, binding.Sum(nil)))
	}
	s.current.Store(config)
	return nil
}

// ticketKeys derives the keys of a chain from those of the suite: a ticket opens only where the listener, the authority of its
// clients and what is asked of them are the same as where it was sealed.
func ticketKeys(suite [][]byte, binding []byte) [][32]byte {
	keys := make([][32]byte, len(suite))
	for i, key := range suite {
		mac := hmac.New(sha256.New, key)
		mac.Write(binding)
		copy(keys[i][:], mac.Sum(nil))
	}
	return keys
}

// certificates puts the chain's certificates where handshakes find them by SNI.
func (s *Server) certificates(config *tls.Config, secrets *Secrets) error {
	shelf := &shelf{byName: map[string][]*tls.Certificate{}}
	for _, name := range s.settings.GetCertificates() {
		c := secrets.Certificates[name]
		if c == nil {
			return fmt.Errorf("certificate %q has not arrived", name)
		}
		shelf.add(c)
	}
	if len(shelf.all) == 0 {
		return errors.New("it names no certificate")
	}
	if len(shelf.all) == 1 {
		config.Certificates = []tls.Certificate{*shelf.all[0]}
		return nil
	}
	config.GetCertificate = shelf.choose
	return nil
}

// shelf holds several certificates: by the exact names and the wildcards that they are for, in the order of the configuration.
type shelf struct {
	all    []*tls.Certificate
	byName map[string][]*tls.Certificate
}

func (s *shelf) add(c *tls.Certificate) {
	s.all = append(s.all, c)
	for _, name := range c.Leaf.DNSNames {
		name = strings.ToLower(name)
		s.byName[name] = append(s.byName[name], c)
	}
	for _, ip := range c.Leaf.IPAddresses {
		s.byName[ip.String()] = append(s.byName[ip.String()], c)
	}
}

// choose implements tls.Config.GetCertificate: exact name, wildcard, the first of all; of several (RSA and ECDSA) the first one
// that the client can use. The connection remembers it.
func (s *shelf) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := s.pick(hello)
	if p, ok := hello.Conn.(*pipe); ok {
		p.transport.own = c
	}
	return c, nil
}

func (s *shelf) pick(hello *tls.ClientHelloInfo) *tls.Certificate {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	list := s.byName[name]
	if list == nil {
		if _, rest, found := strings.Cut(name, "."); found {
			list = s.byName["*."+rest]
		}
	}
	if list == nil {
		list = s.all[:1]
	}
	for _, c := range list {
		if len(list) == 1 || hello.SupportsCertificate(c) == nil {
			return c
		}
	}
	return list[0]
}

func versions(least, most string) (low, high uint16, err error) {
	of := func(text string, unset uint16) (uint16, error) {
		switch text {
		case "":
			return unset, nil
		case "1.2":
			return tls.VersionTLS12, nil
		case "1.3":
			return tls.VersionTLS13, nil
		}
		return 0, fmt.Errorf("TLS version %q is none of 1.2 and 1.3", text)
	}
	if low, err = of(least, tls.VersionTLS12); err != nil {
		return 0, 0, err
	}
	if high, err = of(most, tls.VersionTLS13); err != nil {
		return 0, 0, err
	}
	if low > high {
		return 0, 0, fmt.Errorf("min_version %s is above max_version %s", least, most)
	}
	return low, high, nil
}
