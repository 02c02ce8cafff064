package hcm

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"strings"
	"testing"
)

func TestClientCertElement(t *testing.T) {
	uri, _ := url.Parse("spiffe://mesh/app")
	odd, _ := url.Parse("urn:a,b;c")
	state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{
		Raw: []byte("raw"), Subject: pkix.Name{CommonName: "a \"quoted\"\r\nX-Admin: yes", Organization: []string{"back\\slash"}},
		URIs: []*url.URL{uri, odd}, DNSNames: []string{"app.mesh", "x\r\ny"},
	}}}
	const hash = "Hash=d7439bee24773bcbfa2d0a97947ee36227b10d1022b1a55847e928965bb6bfde"
	for _, x := range []struct {
		details []string
		want    string
	}{
		{nil, ""},
		{[]string{"uri"}, `;URI=spiffe://mesh/app;URI="urn:a,b;c"`},
		{[]string{"dns"}, `;DNS=app.mesh;DNS="xy"`},
		{[]string{"subject"}, `;Subject="CN=a \\\"quoted\\\"X-Admin: yes,O=back\\\\slash"`},
	} {
		d := newCertDetails(x.details)
		got := string(d.Note(state, nil))
		if got != hash+x.want {
			t.Errorf("%v: %s and not %s", x.details, got, hash+x.want)
		}
		if strings.ContainsAny(got, "\r\n\x00") {
			t.Errorf("%v: %q would be two headers", x.details, got)
		}
	}
	own := &x509.Certificate{URIs: []*url.URL{uri, odd}, DNSNames: []string{"edge.mesh"}}
	d := newCertDetails([]string{"dns"})
	if got, want := string(d.Note(state, own)), `By=spiffe://mesh/app;By="urn:a,b;c";`+hash+`;DNS=app.mesh;DNS="xy"`; got != want {
		t.Errorf("%s and not %s", got, want)
	}
	d = newCertDetails([]string{"cert", "chain"})
	if got := string(d.Note(state, nil)); !strings.Contains(got, `;Cert="-----BEGIN%20CERTIFICATE-----%0A`) || !strings.Contains(got, `;Chain="-----BEGIN%20CERTIFICATE`) {
		t.Errorf("%s", got)
	}
	if d.Note(&tls.ConnectionState{}, own) != nil {
		t.Error("something is said of a client without a certificate")
	}
}
