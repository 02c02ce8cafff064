package counters

import statsv1 "retinue.dev/services/api/stats/v1"

// Cells of TLS, part of a listener's and of a cluster's.
const (
	SSLConnectionError = iota
	SSLHandshake
	SSLSessionReused
	SSLNoCertificate
	SSLFailVerifyNoCert
	SSLFailVerifyError
	SSLFailVerifySAN
	SSLFailVerifyRevoked
	SSLHandshakeTimeout
	SSLHandshakePanic
	SSLVersions12
	SSLVersions13
	SSLCells
)

func ssl() []*statsv1.Field {
	version := func(v string) *statsv1.Field {
		f := field(counter, "ssl_versions", "TLS handshakes by version")
		f.Labels = []*statsv1.Label{{Name: "version", Value: v}}
		return f
	}
	return []*statsv1.Field{
		field(counter, "ssl_connection_error", "TLS connections that failed, in the handshake or later"),
		field(counter, "ssl_handshake", "TLS handshakes completed"),
		field(counter, "ssl_session_reused", "TLS handshakes that resumed a session"),
		field(counter, "ssl_no_certificate", "TLS connections whose peer has no certificate"),
		field(counter, "ssl_fail_verify_no_cert", "TLS handshakes refused for want of a client certificate"),
		field(counter, "ssl_fail_verify_error", "TLS handshakes refused because the peer's certificate is not trusted"),
		field(counter, "ssl_fail_verify_san", "TLS handshakes refused because the peer's certificate has another name"),
		field(counter, "ssl_fail_verify_revoked", "TLS handshakes refused because the peer's certificate is revoked"),
		field(counter, "ssl_handshake_timeout", "TLS handshakes that took too long"),
		field(counter, "ssl_handshake_panic", "TLS handshakes that failed inside this program"),
		version("TLSv1.2"),
		version("TLSv1.3"),
	}
}
