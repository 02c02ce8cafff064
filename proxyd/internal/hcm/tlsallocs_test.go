package hcm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// wire is the test's end of a simulated connection, for crypto/tls: a read turns the loop until bytes are there. What the far end
// will say in the measured part is sealed before, so that only the proxy's own allocations are counted.
type wire struct {
	net.Conn // nil: what crypto/tls does not call
	sim      *sim
	peer     *simulated.Peer
	sealing  bool
	sealed   [][]byte
}

func (w *wire) Read(b []byte) (int, error) {
	for range 1000 {
		if n := min(w.peer.Waiting(), len(b)); n > 0 {
			return copy(b, w.peer.Receive(n)), nil
		}
		w.sim.worker.Turn(0)
	}
	return 0, io.ErrUnexpectedEOF
}

func (w *wire) Write(b []byte) (int, error) {
	if w.sealing {
		w.sealed = append(w.sealed, bytes.Clone(b))
	} else {
		w.peer.Send(b)
	}
	return len(b), nil
}

// next sends the next sealed record.
func (w *wire) next() {
	w.peer.Send(w.sealed[0])
	w.sealed = w.sealed[1:]
}

// doorway is what a connection's handler is until TLS is there.
type doorway struct{ *sim }

func (d doorway) OnConnected(c *conn.Conn)      { d.filter.Accept(c, d.listener) }
func (doorway) OnData(*conn.Conn, []byte) int   { return 0 }
func (doorway) OnEOF(*conn.Conn)                {}
func (doorway) OnAboveHigh(*conn.Conn)          {}
func (doorway) OnBelowLow(*conn.Conn)           {}
func (doorway) OnClose(*conn.Conn, conn.Reason) {}

// secureSim is a sim whose clients, and whose upstream if it is asked for, speak TLS of one version.
type secureSim struct {
	*sim
	side    *tlstransport.Side
	server  *tlstransport.Server
	secrets *configv1.Secrets
	version uint16
	up      *wire
	upTLS   *tls.Conn
}

func newSecureSim(t testing.TB, version uint16, secureUpstream bool) *secureSim {
	t.Helper()
	up := &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000}
	s := &secureSim{sim: newSimCluster(t, up, defaults()), version: version}
	s.filter.Config.Logs = nil
	s.side = tlstransport.NewSide(s.worker)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"shop.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	s.secrets = &configv1.Secrets{Certificates: []*configv1.CertificateSecret{{
		Name:     "own",
		ChainPem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), KeyPem: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
	}}}
	secrets, err := tlstransport.ParseSecrets(s.secrets)
	must(t, err)
	s.server, err = tlstransport.NewServer("web", &configv1.Tls{Certificates: []string{"own"}, Alpn: []string{"h2", "http/1.1"}}, nil, secrets)
	must(t, err)
	if secureUpstream {
		client, err := tlstransport.NewClient(&configv1.UpstreamTls{Insecure: true}, []string{"http/1.1"}, nil)
		must(t, err)
		config := *s.manager.Cluster(0)
		config.TLS = client
		s.manager.Update([]*upstream.Config{&config})
	}
	return s
}

// client connects and shakes hands.
func (s *secureSim) client(protocol string) (*wire, *tls.Conn) {
	s.t.Helper()
	fd, p := s.net.Pair()
	*s.listener.Counters.Active++
	s.ids++
	c, errno := conn.Accept(s.worker, fd, simClient, s.ids, doorway{s.sim}, &conn.Options{HighWatermark: s.filter.Config.BufferLimit})
	if errno != 0 {
		s.t.Fatal(errno)
	}
	c.Secure(s.side.Server(s.server.Config(), new(counters.SSL)), time.Minute)
	w := &wire{sim: s.sim, peer: p}
	far := tls.Client(w, &tls.Config{InsecureSkipVerify: true, ServerName: "shop.test", NextProtos: []string{protocol}, MinVersion: s.version, MaxVersion: s.version, DynamicRecordSizingDisabled: true})
	must(s.t, far.Handshake())
	return w, far
}

// accept is the upstream's part of a handshake.
func (s *secureSim) accept() {
	s.t.Helper()
	secrets, err := tlstransport.ParseSecrets(s.secrets)
	must(s.t, err)
	s.turn()
	s.up = &wire{sim: s.sim, peer: s.backlog.Last()}
	s.upTLS = tls.Server(s.up, &tls.Config{Certificates: []tls.Certificate{*secrets.Certificates["own"]}, MinVersion: s.version, MaxVersion: s.version, DynamicRecordSizingDisabled: true})
	must(s.t, s.upTLS.Handshake())
}

// script is the far ends' words, sealed beforehand: what a client says in each round, and what the upstream answers.
type script struct {
	protocol string
	begin    []byte             // of a client's connection
	request  func(n int) []byte // of the round of that number
	answer   []byte
	least    int // bytes of an answer that the client must see
	records  int // of the client in a round
	answers  int // of the upstream in a round, over TLS
}

const tlsWarmUp, tlsMeasured = 200, 1000

// perform makes the rounds ready; each call of the function is one.
func (x *script) perform(t testing.TB, version uint16, secureUpstream bool, rounds int) func() {
	s := newSecureSim(t, version, secureUpstream)
	w, far := s.client(x.protocol)
	if len(x.begin) > 0 {
		_, err := far.Write(x.begin)
		must(t, err)
	}
	w.sealing = true
	for n := range rounds {
		_, err := far.Write(x.request(n))
		must(t, err)
	}
	if len(w.sealed) != rounds*x.records {
		t.Fatalf("%d records and not %d a round", len(w.sealed), x.records)
	}
	first := true
	return func() {
		for range x.records {
			w.next()
		}
		s.worker.Turn(0)
		arrived := 0
		if first {
			first = false
			arrived = 1 // with the end of the upstream's handshake
			if secureUpstream {
				s.accept()
				s.up.sealing = true
				for range rounds {
					_, err := s.upTLS.Write(x.answer)
					must(t, err)
				}
				if len(s.up.sealed) != rounds*x.answers {
					t.Fatalf("%d records of answers and not %d a round", len(s.up.sealed), x.answers)
				}
			}
			s.turn()
		}
		up := s.backlog.Last()
		if arrived += up.Discard(); arrived == 0 {
			t.Fatal("no request reached the upstream")
		}
		if secureUpstream {
			for range x.answers {
				s.up.next()
			}
		} else {
			up.Send(x.answer)
		}
		s.worker.Turn(0)
		if n := w.peer.Discard(); n < x.least {
			t.Fatalf("%d bytes reached the client of at least %d", n, x.least)
		}
	}
}

var (
	tlsHTTP1  = &script{protocol: "http/1.1", request: func(int) []byte { return plainRequest }, answer: plainResponse, least: len(plainResponse), records: 1, answers: 1}
	tlsUpload = &script{
		protocol: "http/1.1", records: 4, least: len(plainResponse), answer: plainResponse, answers: 1,
		request: func(int) []byte {
			head := "POST /64k HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 65400\r\n\r\n"
			return append([]byte(head), make([]byte, 65_400)...)
		},
	}
	tlsDownload = &script{
		protocol: "http/1.1", request: func(int) []byte { return plainRequest }, records: 1, answers: 5, least: 65_536,
		answer: append([]byte("HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n"), make([]byte, 65_536)...),
	}
	tlsHTTP2 = &script{
		protocol: "h2", begin: append([]byte(http2frame.Preface), http2frame.AppendSettings(nil)...), answer: plainResponse, least: 1024, records: 1, answers: 1,
		request: func(n int) []byte {
			head := (&h2Client{}).head(1, true)
			binary.BigEndian.PutUint32(head[5:], uint32(2*n+1))
			return http2frame.AppendWindowUpdate(head, 0, 1024)
		},
	}
)

// TestRecordAllocations holds that opening a record of TLS costs at most one allocation, and sealing one none, whatever is in it: the
// allocations of a round are the records that the proxy reads in it. Where the one is: docs/tls.md.
func TestRecordAllocations(t *testing.T) {
	if raced {
		t.Skip("under the race detector crypto/tls allocates what it would find in its pool")
	}
	for _, x := range []struct {
		name string
		*script
		rounds int
	}{{"HTTP/1", tlsHTTP1, tlsMeasured}, {"HTTP/2", tlsHTTP2, tlsMeasured}, {"64 KiB up", tlsUpload, 50}, {"64 KiB down", tlsDownload, 50}} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, secureUpstream := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, upstream %t", x.name, tls.VersionName(version), secureUpstream), func(t *testing.T) {
					warm := min(tlsWarmUp, x.rounds)
					once := x.perform(t, version, secureUpstream, warm+x.rounds+1)
					for range warm {
						once()
					}
					read := x.records
					if secureUpstream {
						read += x.answers
					}
					if n := testing.AllocsPerRun(x.rounds, once); n > float64(read) {
						t.Errorf("%v allocations for %d records read", n, read)
					}
				})
			}
		}
	}
}

// BenchmarkTLSRecord is a request and its response over TLS, sealed and opened: its profile shows where the allocation is.
func BenchmarkTLSRecord(b *testing.B) {
	for _, x := range []struct {
		name string
		*script
	}{{"HTTP1", tlsHTTP1}, {"HTTP2", tlsHTTP2}} {
		b.Run(x.name, func(b *testing.B) {
			once := x.perform(b, tls.VersionTLS13, false, tlsWarmUp+b.N)
			for range tlsWarmUp {
				once()
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				once()
			}
		})
	}
}
