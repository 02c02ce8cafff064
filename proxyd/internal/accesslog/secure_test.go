package accesslog

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"

	"retinue.dev/libs/logformat"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestNote: what a handshake has shown is found again by slot, whatever is missing, and no certificate makes it longer than it may be.
func TestNote(t *testing.T) {
	p, err := Compile(&configv1.AccessLog{Format: "%DOWNSTREAM_TLS_VERSION% %PROTOCOL% %DOWNSTREAM_TLS_CIPHER% %REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_PEER_SERIAL% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_LOCAL_SUBJECT% %DOWNSTREAM_LOCAL_DNS_SAN%"})
	if err != nil {
		t.Fatal(err)
	}
	spiffe := &url.URL{Scheme: "spiffe", Host: "mesh", Path: "/app"}
	peer := &x509.Certificate{Subject: pkix.Name{CommonName: "app", Organization: []string{"Shop, Inc."}}, SerialNumber: big.NewInt(0xbeef), URIs: []*url.URL{spiffe, spiffe}, DNSNames: []string{strings.Repeat("a", 2*maxShown)}}
	own := &x509.Certificate{Subject: pkix.Name{CommonName: "shop"}, DNSNames: []string{"shop.test", "www.shop.test"}}
	state := &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, ServerName: "shop.test"}
	for _, test := range []struct {
		name      string
		peer, own *x509.Certificate
		want      []string
	}{
		{"both", peer, own, []string{"TLSv1.3", "TLS_AES_128_GCM_SHA256", "shop.test", `CN=app,O=Shop\, Inc.`, "beef", "spiffe://mesh/app,spiffe://mesh/app", strings.Repeat("a", maxShown), "CN=shop", "shop.test,www.shop.test"}},
		{"no client certificate", nil, own, []string{"TLSv1.3", "TLS_AES_128_GCM_SHA256", "shop.test", "", "", "", "", "CN=shop", "shop.test,www.shop.test"}},
		{"none at all", nil, nil, []string{"TLSv1.3", "TLS_AES_128_GCM_SHA256", "shop.test", "", "", "", "", "", ""}},
	} {
		state.PeerCertificates = nil
		if test.peer != nil {
			state.PeerCertificates = []*x509.Certificate{test.peer}
		}
		note := p.Note(state, test.own)
		for slot, want := range test.want {
			if got := string(part(note, slot)); got != want {
				t.Errorf("%s: slot %d is %.60q, want %.60q", test.name, slot, got, want)
			}
		}
		if got := part(note, len(test.want)); got != nil {
			t.Errorf("%s: behind the last slot is %q", test.name, got)
		}
	}
	if got := part(nil, 0); got != nil {
		t.Errorf("without a note: %q", got)
	}
}

// TestOfTLS: the operators that a handshake answers are those that Note knows.
func TestOfTLS(t *testing.T) {
	certificate := &x509.Certificate{Raw: []byte("x"), Subject: pkix.Name{CommonName: "a"}, Issuer: pkix.Name{CommonName: "b"}, SerialNumber: big.NewInt(1), DNSNames: []string{"c"}, URIs: []*url.URL{{Scheme: "d"}}}
	state := &tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, ServerName: "e"}
	for _, o := range logformat.Operators() {
		if got := shown(o.ID, state, certificate, certificate); (got != "") != o.ID.OfTLS() {
			t.Errorf("%s: a handshake shows %q; of TLS %v", o.Name, got, o.ID.OfTLS())
		}
	}
}
