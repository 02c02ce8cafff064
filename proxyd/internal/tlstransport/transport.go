// Package tlstransport puts crypto/tls between the sockets and the handlers of a worker's loop.
//
// crypto/tls wants a connection that blocks. A handshake therefore runs in a coroutine (iter.Pull) on the worker's own thread: it
// yields when it needs a record that is not there, and the loop resumes it when a whole one is. After the handshake crypto/tls
// forgives a read that finds nothing, so records are opened by plain calls: the length in each record's header says when to call,
// and a call costs one allocation (crypto/tls' atLeastReader). It does not forgive a failed write: what it writes is always taken,
// and connections are held back by their watermarks before.
//
// A coroutine is made, resumed and stopped on its worker. A connection that ends in its handshake stops it: reads and writes
// then answer net.ErrClosed and yield no more. A panic is caught at the coroutine's root and fails that connection only.
package tlstransport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
)

const (
	headerSize = 5
	// maxSealed is the longest record that a peer may send: TLS 1.2 allows 2 KiB beyond the plain bytes (RFC 5246 6.2.3).
	maxSealed = 16<<10 + 2<<10
	maxPlain  = 16 << 10
)

// Transport is TLS on one connection: conn.Transport. It lives as long as its connection.
type Transport struct {
	side   *Side
	conn   *conn.Conn
	tls    *tls.Conn
	cells  *counters.SSL
	pipe   pipe
	config *tls.Config
	own    *tls.Certificate // what choose has picked for this connection

	// The coroutine of the handshake; nil before and after.
	next func() (struct{}, bool)
	stop func()
	err  error

	protocol string
	version  uint16
	cipher   uint16
	notes    []note // see PeerNote
	client   bool
	ready    bool
	begun    bool
	shown    bool // the peer has shown a certificate
	placed   bool // it is one of those that may be under way
	granted  bool // its turn among those that waited has come
	over     bool // the connection is gone
	waits    *Transport
	touched  int64 // ns: when it last opened a record
	fat      bool  // its buffers are among those to shrink
}

// Server makes the transport of an accepted connection.
func (s *Side) Server(config *tls.Config, cells *counters.SSL) *Transport {
	return &Transport{side: s, config: config, cells: cells}
}

// Client makes the transport of a dialled connection.
func (s *Side) Client(config *tls.Config, cells *counters.SSL) *Transport {
	return &Transport{side: s, config: config, cells: cells, client: true}
}

// Begin implements conn.Transport.
func (t *Transport) Begin(c *conn.Conn) {
	t.conn = c
	t.pipe.transport = t
	if t.client {
		t.step(nil) // says hello
	}
}

// Protocol implements conn.Transport.
func (t *Transport) Protocol() string { return t.protocol }

// Version and cipher suite that the handshake agreed on, by crypto/tls's numbers; 0 before its end.
func (t *Transport) Version() (version, cipher uint16) { return t.version, t.cipher }

// Certified tells that the peer has shown a certificate; the handshake has verified it.
func (t *Transport) Certified() bool { return t.shown }

// Noter puts into words what a handshake has shown of the peer. own is the certificate that this side stands for; nil for none.
type Noter interface {
	Note(state *tls.ConnectionState, own *x509.Certificate) []byte
}

// note is what one noter says.
type note struct {
	noter Noter
	text  []byte
}

// mostNotes bounds what is kept of noters: those of former configurations go first.
const mostNotes = 8

// PeerNote is what the noter says of the peer, asked once a connection: noters change with the configuration. nil before the
// end of the handshake.
func (t *Transport) PeerNote(n Noter) []byte {
	for i := range t.notes {
		if t.notes[i].noter == n {
			return t.notes[i].text
		}
	}
	if !t.ready {
		return nil
	}
	if len(t.notes) == mostNotes {
		t.notes = append(t.notes[:0], t.notes[1:]...)
	}
	state := t.tls.ConnectionState()
	t.notes = append(t.notes, note{n, n.Note(&state, t.ownCertificate(&state))})
	return t.notes[len(t.notes)-1].text
}

// ownCertificate is the one that a server has shown. A resumed handshake of TLS 1.3 shows none: it is the one that the name leads to.
func (t *Transport) ownCertificate(state *tls.ConnectionState) *x509.Certificate {
	switch {
	case t.own != nil:
		return t.own.Leaf
	case len(t.config.Certificates) > 0:
		return t.config.Certificates[0].Leaf
	case t.config.GetCertificate != nil:
		if c, err := t.config.GetCertificate(&tls.ClientHelloInfo{ServerName: state.ServerName}); err == nil {
			return c.Leaf
		}
	}
	return nil
}

// Err is why the handshake failed, for a log.
func (t *Transport) Err() error { return t.err }

// record is the length of the first record in b; 0 when it is not all there. What is no record is given on as it is:
// crypto/tls refuses it with the right alert.
func record(b []byte) int {
	if len(b) < headerSize {
		return 0
	}
	if b[0] < 20 || b[0] > 23 || b[1] != 3 {
		return len(b)
	}
	n := headerSize + int(b[3])<<8 + int(b[4])
	if n > headerSize+maxSealed {
		return len(b)
	}
	if n > len(b) {
		return 0
	}
	return n
}

// Open implements conn.Transport.
func (t *Transport) Open(wire, plain []byte) (int, []byte, conn.Progress) {
	if !t.ready {
		return t.shake(wire, plain)
	}
	taken := 0
	for cap(plain)-len(plain) >= maxPlain {
		n := record(wire[taken:])
		if n == 0 {
			break
		}
		t.pipe.in = wire[taken : taken+n]
		m, err := t.tls.Read(plain[len(plain):cap(plain)])
		t.pipe.in = nil
		plain = plain[:len(plain)+m]
		taken += n
		switch {
		case err == nil, errors.Is(err, errDry):
		case errors.Is(err, io.EOF):
			return taken, plain, conn.Ended
		default:
			t.err = err
			t.cells[counters.SSLConnectionError]++
			return taken, plain, conn.Failed
		}
	}
	if taken > 0 {
		t.side.opened(t)
	}
	return taken, plain, conn.More
}

// shake takes the handshake one record further, when its turn has come.
func (t *Transport) shake(wire, plain []byte) (int, []byte, conn.Progress) {
	if t.err != nil { // the client's hello failed
		return 0, plain, conn.Failed
	}
	n := record(wire)
	if n == 0 {
		return 0, plain, conn.More
	}
	if !t.side.admit(t) {
		return 0, plain, conn.Wait
	}
	switch t.step(wire[:n]) {
	case stepMore:
		return n, plain, conn.More
	case stepDone:
		return n, plain, conn.Ready
	}
	return n, plain, conn.Failed
}

type stepped uint8

const (
	stepMore stepped = iota
	stepDone
	stepFailed
)

// step resumes the coroutine with a record.
func (t *Transport) step(in []byte) stepped {
	if !t.begun {
		t.begun = true
		if t.client {
			t.side.place(t)
			t.tls = tls.Client(&t.pipe, t.config)
		} else {
			t.tls = tls.Server(&t.pipe, t.config)
		}
		t.next, t.stop = iter.Pull(t.handshake)
	}
	t.pipe.in = in
	_, alive := t.next()
	t.pipe.in = nil
	if alive {
		return stepMore
	}
	t.ended()
	if t.err != nil {
		t.failed()
		return stepFailed
	}
	t.ready = true
	t.succeeded()
	return stepDone
}

// handshake is the coroutine.
func (t *Transport) handshake(yield func(struct{}) bool) {
	t.pipe.yield = yield
	defer func() {
		t.pipe.yield = nil
		if p := recover(); p != nil {
			t.err = fmt.Errorf("tls: panic in the handshake: %v", p)
			t.cells[counters.SSLHandshakePanic]++
		}
	}()
	t.err = t.tls.Handshake()
}

// ended gives the coroutine's place back.
func (t *Transport) ended() {
	t.next, t.stop = nil, nil
	t.side.release(t)
}

func (t *Transport) succeeded() {
	state := t.tls.ConnectionState()
	t.protocol, t.version, t.cipher = state.NegotiatedProtocol, state.Version, state.CipherSuite
	t.cells[counters.SSLHandshake]++
	if state.DidResume {
		t.cells[counters.SSLSessionReused]++
	}
	t.shown = len(state.PeerCertificates) > 0
	if !t.client && !t.shown {
		t.cells[counters.SSLNoCertificate]++
	}
	if state.Version == tls.VersionTLS13 {
		t.cells[counters.SSLVersions13]++
	} else {
		t.cells[counters.SSLVersions12]++
	}
}

func (t *Transport) failed() {
	t.cells[counters.SSLConnectionError]++
	var verify *VerifyError
	var header tls.RecordHeaderError
	switch {
	case errors.As(t.err, &header) && !t.client && isHTTP(header.RecordHeader):
		t.conn.Wire(plainHTTP)
	case errors.As(t.err, &verify):
		t.cells[verify.cell]++
	case isCertificateError(t.err):
		t.cells[counters.SSLFailVerifyError]++
	case isMissingCertificate(t.err):
		t.cells[counters.SSLFailVerifyNoCert]++
	}
}

// plainHTTP answers a client that speaks HTTP without TLS, as net/http does: it would not understand an alert.
var plainHTTP = []byte("HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks HTTPS: the request came without TLS.\n")

func isHTTP(begin [headerSize]byte) bool {
	switch string(begin[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH", "CONNE", "TRACE", "PRI *":
		return true
	}
	return false
}

// Seal implements conn.Transport.
func (t *Transport) Seal(b []byte) { _, _ = t.tls.Write(b) }

// CloseNotify implements conn.Transport.
func (t *Transport) CloseNotify() { _ = t.tls.CloseWrite() }

// Closed implements conn.Transport.
func (t *Transport) Closed(reason conn.Reason) {
	t.over = true
	switch {
	case t.ready || t.err != nil:
	case reason == conn.ConnectTimeout:
		t.cells[counters.SSLHandshakeTimeout]++
	default:
		t.cells[counters.SSLConnectionError]++
	}
	if t.stop != nil {
		t.pipe.dead = true
		t.stop()
		t.ended()
	}
	t.side.release(t)
}

// pipe is the connection that crypto/tls sees: reads are served from the record at hand, writes are staged.
type pipe struct {
	transport *Transport
	in        []byte
	yield     func(struct{}) bool // within the handshake
	dead      bool
}

// dry says that there is nothing to read now: crypto/tls takes a temporary error for that and goes on later.
type dry struct{}

func (dry) Error() string   { return "no record now" }
func (dry) Timeout() bool   { return true }
func (dry) Temporary() bool { return true }

var errDry error = dry{}

// Read implements net.Conn.
func (p *pipe) Read(b []byte) (int, error) {
	for len(p.in) == 0 {
		switch {
		case p.dead:
			return 0, net.ErrClosed
		case p.yield == nil:
			return 0, errDry
		case !p.yield(struct{}{}):
			p.dead = true
		}
	}
	n := copy(b, p.in)
	p.in = p.in[n:]
	return n, nil
}

// Write implements net.Conn.
func (p *pipe) Write(b []byte) (int, error) {
	if p.dead {
		return 0, net.ErrClosed
	}
	p.transport.conn.Wire(b)
	return len(b), nil
}

// Close implements net.Conn; the connection is not crypto/tls' to close.
func (p *pipe) Close() error { return nil }

// LocalAddr implements net.Conn.
func (p *pipe) LocalAddr() net.Addr { return address("") }

// RemoteAddr implements net.Conn. A client's session cache takes it for a name where no server name is set.
func (p *pipe) RemoteAddr() net.Addr {
	if a := p.transport.conn.Address(); a != nil {
		return address(a.Text)
	}
	return address("")
}

// SetDeadline implements net.Conn; time-outs are the connection's.
func (p *pipe) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (p *pipe) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }
