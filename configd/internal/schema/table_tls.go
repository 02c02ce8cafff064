package schema

func certificateBlock() *Block {
	return &Block{
		Name: "certificate", Label: "name", Named: true,
		LabelDoc: "Name in references and metrics.",
		Doc: "A certificate with its private key. The files are read by configd and again whenever they change; connections that are there are not touched. " +
			"Their content is never part of a snapshot; a pair that does not fit is refused and the one before stays.",
		Example: `certificate "shop" {
  cert_file = "/etc/retinue/tls/shop.crt"
  key_file  = "/etc/retinue/tls/shop.key"
}`,
		Attrs: []Attr{
			{Name: "cert_file", Kind: String, Required: true, Doc: "PEM file, the certificate first, then those that signed it; relative to the configuration."},
			{Name: "key_file", Kind: String, Required: true, Doc: "PEM file of the private key, without a password, readable for configd alone."},
		},
		Blocks: []Nested{{Block: later("acme", 0)}},
	}
}

func tlsVersion(name, fallback, doc string) Attr {
	return Attr{Name: name, Kind: String, Default: fallback, Choices: []string{"1.2", "1.3"}, Doc: doc}
}

func tlsBlock() *Block {
	return &Block{
		Name: "tls",
		Doc:  "TLS on the connections of a listener. Cipher suites and curves are those of Go's crypto/tls.",
		Example: `listener "edge" {
  address = ["0.0.0.0:443"]
  tls {
    certificates = [certificate.shop, certificate.rest]
    client_ca    = "/etc/retinue/tls/clients.pem"
  }
  tcp { cluster = cluster.web }
}`,
		Attrs: []Attr{
			{Name: "certificates", Kind: References, Refers: "certificate", One: true, Required: true, MaxLen: 10_000, Doc: "chosen by the name that the client asks for (SNI): exact, then wildcard, else the first."},
			tlsVersion("min_version", "1.2", "oldest version of TLS."),
			tlsVersion("max_version", "1.3", "newest version of TLS."),
			{Name: "alpn", Kind: Strings, MaxLen: 16, DefaultDoc: "[\"h2\", \"http/1.1\"] with `http`, none with `tcp`", Doc: "protocols offered, the preferred one first."},
			{Name: "client_ca", Kind: String, DefaultDoc: "clients are not asked for a certificate", Doc: "PEM file of the authorities that sign clients' certificates (mTLS)."},
			{Name: "require_client_cert", Kind: Bool, DefaultDoc: "true with `client_ca`", Doc: "refuse clients without a certificate; with false they may come without, and a certificate that is shown is verified all the same."},
			{Name: "verify_san", Kind: Strings, MaxLen: 1000, DefaultDoc: "any", Doc: "names (DNS, URI, address, mail), one of which a client's certificate has: \"app.mesh\", \"*.mesh\" for one label, \"spiffe://mesh/app\"."},
			{Name: "crl_file", Kind: String, DefaultDoc: "none", Doc: "PEM file of revocation lists for clients' certificates."},
			{Name: "session_tickets", Kind: Bool, Default: true, Doc: "let clients resume sessions. The keys are made by the suite, rotate every 12 hours and outlive upgrades."},
			{Name: "handshake_timeout", Kind: Duration, Default: "15s", Min: 100, Max: 10 * minute, Doc: "from the connection to the end of the handshake."},
		},
	}
}

func upstreamTLSBlock() *Block {
	return &Block{
		Name: "tls",
		Doc:  "TLS towards the endpoints of a cluster.",
		Example: `cluster "app" {
  endpoints = ["10.0.0.1:8443"]
  tls {
    sni     = "app.internal"
    ca_file = "/etc/retinue/tls/internal.pem"
  }
}`,
		Attrs: []Attr{
			{Name: "sni", Kind: String, MaxLen: 255, DefaultDoc: "none is sent, and the certificate must be for the endpoint's address; a logical endpoint's name", Doc: "name that is asked for, and that the certificate must have."},
			{Name: "ca_file", Kind: String, DefaultDoc: "the authorities of the system", Doc: "PEM file of the authorities that sign the servers' certificates."},
			{Name: "certificate", Kind: Reference, Refers: "certificate", DefaultDoc: "none", Doc: "shown to servers that ask for one (mTLS)."},
			{Name: "verify_san", Kind: Strings, MaxLen: 1000, DefaultDoc: "`sni`, or the endpoint's address or name", Doc: "names, one of which the server's certificate has; instead of `sni`."},
			{Name: "crl_file", Kind: String, DefaultDoc: "none", Doc: "PEM file of revocation lists for the servers' certificates."},
			{Name: "alpn", Kind: Strings, MaxLen: 16, DefaultDoc: "what `protocol` says", Doc: "protocols offered, the preferred one first."},
			tlsVersion("min_version", "1.2", "oldest version of TLS."),
			tlsVersion("max_version", "1.3", "newest version of TLS."),
			{Name: "insecure", Kind: Bool, Default: false, Doc: "accept every certificate: whoever answers at the address is believed. For tests."},
		},
	}
}

func filterChainBlock() *Block {
	return &Block{
		Name: "filter_chain", Label: "name",
		LabelDoc: "Unique in the listener; part of the metrics' label: LISTENER/NAME.",
		Doc: "What happens to those connections of a listener that match. Of several chains the most specific one is taken: the longest source prefix, then the exact name before the longest wildcard, then the protocol. " +
			"One without `match` is for the rest; without it, what matches nothing is closed. A chain without `tls` carries TLS through as it is: with `sni` that is routing by name without the key.",
		Example: `listener "edge" {
  address = ["0.0.0.0:443"]
  filter_chain "passthrough" {
    match { sni = ["db.example.com"] }
    tcp { cluster = cluster.db }
  }
  filter_chain "rest" {
    tls { certificates = [certificate.shop] }
    tcp { cluster = cluster.web }
  }
}`,
		Attrs: []Attr{connectionFiltersAttr("those of the listener")},
		Blocks: []Nested{
			{Block: &Block{
				Name: "match",
				Doc:  "Which connections a filter chain is for; everything that is written must match. Names and protocols are read from the client's first TLS message, at most 16 KiB of it.",
				Attrs: []Attr{
					{Name: "sni", Kind: Strings, MaxLen: 1000, Doc: "names that a TLS client asks for: \"shop.example.com\", \"*.example.com\"."},
					{Name: "alpn", Kind: Strings, MaxLen: 16, Doc: "protocols, one of which a TLS client offers."},
					{Name: "source", Kind: Strings, MaxLen: 1000, Doc: "networks of clients: \"10.0.0.0/8\"."},
				},
			}},
			{Block: tlsBlock()},
			{Block: httpBlock()},
			{Block: tcpBlock()},
		},
	}
}

func proxyProtocolBlock() *Block {
	return &Block{
		Name: "proxy_protocol",
		Doc:  "Connections begin with a PROXY header, version 1 or 2, that tells whose they are. It comes before TLS.",
		Example: `listener "edge" {
  address = ["0.0.0.0:443"]
  proxy_protocol { trusted = ["10.0.0.0/8"] }
  tcp { cluster = cluster.web }
}`,
		Attrs: []Attr{
			{Name: "trusted", Kind: Strings, Required: true, MaxLen: 1000, Doc: "networks that may send it: \"10.0.0.0/8\". Others are closed."},
			{Name: "optional", Kind: Bool, Default: false, Doc: "take connections without a header, and those of others, as they are."},
		},
	}
}
