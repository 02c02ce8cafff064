// Package http1 is the HTTP/1.1 codec: strict parsing and exact serialising of RFC 9110 and RFC 9112, without I/O.
//
// A message that two servers could read differently is refused, never repaired: both Content-Length and
// Transfer-Encoding, a repeated Content-Length, a bare LF, obs-fold, white space before a colon, any transfer coding
// but one "chunked", a chunk size with anything but digits. What a parser accepts is in one form, and the
// serialiser writes that form only, with framing of its own making.
package http1

// Limits bounds a head or a trailer section. All fields count; where a *Limits may be nil, that means DefaultLimits.
type Limits struct {
	// Line is the greatest length of a request line or status line.
	Line int
	// Bytes is the greatest length of the whole head, or of the trailers, as on the wire.
	Bytes int
	// Fields is the greatest number of header fields.
	Fields int
}

// DefaultLimits are Envoy's: 60 KiB and 100 fields; a line may take 16 KiB.
var DefaultLimits = Limits{Line: 16 << 10, Bytes: 60 << 10, Fields: 100}

// Framing says where a message's body ends.
type Framing uint8

// The framings of RFC 9112 6.3.
const (
	None       Framing = iota // no body
	Length                    // Content-Length bytes
	Chunked                   // the chunked coding
	UntilClose                // a response that ends with its connection
	Tunnel                    // after 101, or 2xx to CONNECT: bytes of another protocol until either side closes
)

// Head is what a parser found out about a message beyond its fields.
type Head struct {
	Framing Framing
	// Length of the body for Length, and 0 otherwise. A Content-Length of 0 is None.
	Length int64
	// KeepAlive tells whether the sender would go on with this connection after the message.
	KeepAlive bool
	// Upgrade tells that a request asks for another protocol by Connection: upgrade, and that its Upgrade field
	// names one.
	Upgrade bool
	// Expect100 tells that a request's body waits for 100 (Continue).
	Expect100 bool
}

// Connection is the set of options of the Connection field that a serialiser writes.
type Connection uint8

// Connection options, to be combined.
const (
	ConnClose Connection = 1 << iota
	ConnKeepAlive
	ConnUpgrade
)
