package compile

import (
	"net/netip"
	"path/filepath"
	"strings"
	"unicode"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
	"retinue.dev/configd/internal/secret"
)

// certificate compiles one and looks at its files. What they hold stays outside of the snapshot.
func (c *compiler) certificate(n *schema.Node) {
	c.objects++
	cert := &configv1.Certificate{Name: n.Label, CertFile: c.path(n, "cert_file"), KeyFile: c.path(n, "key_file")}
	if cert.CertFile != "" && cert.KeyFile != "" {
		if _, _, _, field, err := secret.Pair(c.in.ReadFile, cert.CertFile, cert.KeyFile); err != nil {
			c.diags.Report(diag.InvalidCertificate, n.Range(field), "Certificate cannot be used", "%s.", err)
		}
	}
	c.out.Add(&configv1.Object{Kind: "certificate", Name: n.Label, Body: &configv1.Object_Certificate{Certificate: cert}}, c.place(n.DefRange))
	c.mark("certificate", n.Label, n)
}

// path is a path as the daemons need it: absolute. "" when it is not set or not usable.
func (c *compiler) path(n *schema.Node, attr string) string {
	p := n.Str(attr)
	if p == "" {
		if n.Has(attr) {
			c.diags.Report(diag.InvalidValue, n.Range(attr), "Invalid path", "A path is not empty.")
		}
		return ""
	}
	if strings.ContainsFunc(p, unicode.IsControl) {
		c.diags.Report(diag.InvalidValue, n.Range(attr), "Invalid path", "A path has no control characters.")
		return ""
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(c.in.Dir, p)
	}
	return filepath.Clean(p)
}

func (c *compiler) authorities(n *schema.Node, attr string) string {
	p := c.path(n, attr)
	if p != "" {
		if _, _, err := secret.Authorities(c.in.ReadFile, p); err != nil {
			c.diags.Report(diag.InvalidCertificate, n.Range(attr), "Authorities cannot be used", "%s.", err)
		}
	}
	return p
}

func (c *compiler) revocations(n *schema.Node) string {
	p := c.path(n, "crl_file")
	if p != "" {
		if _, _, err := secret.Revocations(c.in.ReadFile, p); err != nil {
			c.diags.Report(diag.InvalidCertificate, n.Range("crl_file"), "Revocation list cannot be used", "%s.", err)
		}
	}
	return p
}

// downstreamTLS compiles the tls block of a listener or a filter chain; nil without one.
func (c *compiler) downstreamTLS(n *schema.Node, http bool) *configv1.Tls {
	if n == nil {
		return nil
	}
	t := &configv1.Tls{}
	c.within(n, func() {
		t.Certificates = c.refs(n.List("certificates"))
		if len(n.List("certificates")) == 0 && n.Has("certificates") && !n.Failed("certificates") {
			c.diags.Report(diag.MissingAttribute, n.Range("certificates"), "No certificate", "TLS needs at least one certificate.")
		}
		t.MinVersion, t.MaxVersion = c.versions(n)
		t.Alpn = c.alpn(n)
		if !n.Has("alpn") && http {
			t.Alpn = []string{"h2", "http/1.1"}
		}
		t.ClientCaFile, t.CrlFile = c.authorities(n, "client_ca"), c.revocations(n)
		t.RequireClientCert = n.Bool("require_client_cert")
		if !n.Has("require_client_cert") {
			t.RequireClientCert = n.Has("client_ca")
		}
		t.VerifySan = c.texts(n.List("verify_san"))
		if !n.Has("client_ca") {
			for _, attr := range []string{"require_client_cert", "verify_san", "crl_file"} {
				if n.Own(attr) && (attr != "require_client_cert" || t.RequireClientCert) {
					c.diags.Report(diag.MissingAttribute, n.Range(attr), "Missing attribute", "%s needs client_ca: without an authority no client's certificate can be verified.", attr)
				}
			}
		}
		t.SessionTickets, t.HandshakeTimeoutMs = n.Bool("session_tickets"), n.Int("handshake_timeout")
	})
	return t
}

// upstreamTLS compiles the tls block of a cluster; nil without one.
func (c *compiler) upstreamTLS(n *schema.Node) *configv1.UpstreamTls {
	if n == nil {
		return nil
	}
	t := &configv1.UpstreamTls{}
	c.within(n, func() {
		t.Sni = strings.ToLower(n.Str("sni"))
		if _, err := netip.ParseAddr(t.Sni); err == nil || !hostName(t.Sni) && t.Sni != "" {
			c.diags.Report(diag.InvalidValue, n.Range("sni"), "Invalid server name", "%q is not a host name; addresses are never sent as server name (RFC 6066).", t.Sni)
		}
		t.CaFile, t.CrlFile = c.authorities(n, "ca_file"), c.revocations(n)
		if n.Has("certificate") {
			t.Certificate = c.ref(n.Get("certificate"))
		}
		t.VerifySan = c.texts(n.List("verify_san"))
		t.MinVersion, t.MaxVersion = c.versions(n)
		t.Alpn = c.alpn(n)
		if t.Insecure = n.Bool("insecure"); t.Insecure {
			for _, attr := range []string{"ca_file", "verify_san", "crl_file"} {
				if n.Own(attr) {
					c.diags.Report(diag.Exclusive, n.Range(attr), "Attributes exclude each other", "With insecure nothing is verified: %s would mean nothing.", attr)
				}
			}
		}
	})
	return t
}

func (c *compiler) versions(n *schema.Node) (least, most string) {
	least, most = n.Str("min_version"), n.Str("max_version")
	if least > most && most != "" {
		c.diags.Report(diag.OutOfRange, n.Range("min_version"), "Value not allowed", "min_version %s is above max_version %s.", least, most)
	}
	return least, most
}

// alpn reads protocol names (RFC 7301: 1 to 255 bytes).
func (c *compiler) alpn(n *schema.Node) []string {
	var list []string
	for _, v := range n.List("alpn") {
		name, _ := v.V.(string)
		if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid protocol", "%q is not an ALPN protocol name such as \"h2\".", name)
			continue
		}
		list = append(list, name)
	}
	return list
}

func (c *compiler) texts(values []schema.Value) []string {
	var list []string
	for _, v := range values {
		text, _ := v.V.(string)
		if text == "" || strings.ContainsFunc(text, unicode.IsControl) {
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid name", "%q is no name that a certificate could have.", text)
			continue
		}
		list = append(list, text)
	}
	return list
}

// hostName tells a DNS name of letters, digits, '-' and '_' in labels.
func hostName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for i := range len(label) {
			b := label[i]
			if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_' || b == '-' && i > 0) {
				return false
			}
		}
	}
	return true
}
