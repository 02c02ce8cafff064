package tlstransport

import (
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"strings"
)

// EncodePEM is a certificate in PEM, percent-encoded as Envoy has it: readers of x-forwarded-client-cert and of ext_authz's messages
// take "+" for itself, so that a blank is none.
func EncodePEM(c *x509.Certificate) string {
	text := url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
	return strings.ReplaceAll(text, "+", "%20")
}
