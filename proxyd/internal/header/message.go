package header

// MethodID is a method that routes and codecs ask for by number.
type MethodID uint8

// The methods of RFC 9110 and PATCH (RFC 5789).
const (
	MethodOther MethodID = iota
	MethodGet
	MethodHead
	MethodPost
	MethodPut
	MethodDelete
	MethodConnect
	MethodOptions
	MethodTrace
	MethodPatch

	// NumMethods is one more than the greatest MethodID.
	NumMethods
)

var methodNames = [NumMethods][]byte{
	MethodGet: []byte("GET"), MethodHead: []byte("HEAD"), MethodPost: []byte("POST"), MethodPut: []byte("PUT"),
	MethodDelete: []byte("DELETE"), MethodConnect: []byte("CONNECT"), MethodOptions: []byte("OPTIONS"),
	MethodTrace: []byte("TRACE"), MethodPatch: []byte("PATCH"),
}

// LookupMethod recognises a method, which is case-sensitive.
func LookupMethod(name []byte) MethodID {
	switch string(name) {
	case "GET":
		return MethodGet
	case "HEAD":
		return MethodHead
	case "POST":
		return MethodPost
	case "PUT":
		return MethodPut
	case "DELETE":
		return MethodDelete
	case "CONNECT":
		return MethodConnect
	case "OPTIONS":
		return MethodOptions
	case "TRACE":
		return MethodTrace
	case "PATCH":
		return MethodPatch
	}
	return MethodOther
}

// String is the method's name; "" for MethodOther.
func (m MethodID) String() string { return string(methodNames[m]) }

// Proto is the version that a message arrived with.
type Proto uint8

// The versions.
const (
	HTTP11 Proto = iota
	HTTP10
	HTTP2
)

// String is the version as access logs write it (%PROTOCOL%).
func (p Proto) String() string {
	switch p {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP2:
		return "HTTP/2"
	}
	return "HTTP/1.1"
}

// span is a piece of the arena.
type span struct{ offset, length uint32 }

func (b *Block) at(s span) []byte {
	end := s.offset + s.length
	return b.arena[s.offset:end:end]
}

func (b *Block) putSpan(p []byte) (span, bool) {
	if !b.room(len(p)) {
		return span{}, false
	}
	return span{b.put(p), uint32(len(p))}, true
}

// Request is a request head, whichever protocol it came by. It has no Host field: the host is the authority, once,
// and codecs translate. Reset, parse, route, edit, encode: all on the stream's own thread.
type Request struct {
	Block
	Proto Proto

	methodID                               MethodID
	method, scheme, authority, path, proto span
}

// Reset empties the request and keeps a bounded amount of memory.
func (r *Request) Reset() {
	r.Block.Reset()
	r.Proto, r.methodID = HTTP11, MethodOther
	r.method, r.scheme, r.authority, r.path, r.proto = span{}, span{}, span{}, span{}, span{}
}

// CopyFrom makes the request a copy of another.
func (r *Request) CopyFrom(from *Request) {
	r.Block.CopyFrom(&from.Block)
	r.Proto, r.methodID = from.Proto, from.methodID
	r.method, r.scheme, r.authority, r.path, r.proto = from.method, from.scheme, from.authority, from.path, from.proto
}

// MethodID is the method as a number, MethodOther for those without one.
func (r *Request) MethodID() MethodID { return r.methodID }

// Method is the method's bytes.
func (r *Request) Method() []byte {
	if r.methodID != MethodOther {
		return methodNames[r.methodID]
	}
	return r.at(r.method)
}

// Path is path and query as received ("*" for OPTIONS *, empty for CONNECT).
func (r *Request) Path() []byte { return r.at(r.path) }

// PathOnly is Path without its query.
func (r *Request) PathOnly() []byte {
	p := r.at(r.path)
	for i, c := range p {
		if c == '?' {
			return p[:i:i]
		}
	}
	return p
}

// Authority is host and optional port; empty only for HTTP/1.0 without Host.
func (r *Request) Authority() []byte { return r.at(r.authority) }

// Scheme is "http" or "https"; empty until a codec or the connection manager knows it.
func (r *Request) Scheme() []byte { return r.at(r.scheme) }

// Protocol is the :protocol of an extended CONNECT (RFC 8441), else empty.
func (r *Request) Protocol() []byte { return r.at(r.proto) }

// SetMethod sets the method, a token.
func (r *Request) SetMethod(method []byte) bool {
	if id := LookupMethod(method); id != MethodOther {
		r.methodID, r.method = id, span{}
		return true
	}
	if !ValidName(method) {
		return false
	}
	s, ok := r.putSpan(method)
	if ok {
		r.methodID, r.method = MethodOther, s
	}
	return ok
}

// SetMethodID sets one of the numbered methods.
func (r *Request) SetMethodID(id MethodID) { r.methodID, r.method = id, span{} }

// SetPath sets path and query. Bytes that may not be in a request target are refused.
func (r *Request) SetPath(path []byte) bool {
	return ValidTarget(path) && r.set(&r.path, path)
}

// SetAuthority sets the authority; what ValidAuthority refuses is refused here, except none at all.
func (r *Request) SetAuthority(authority []byte) bool {
	return (len(authority) == 0 || ValidAuthority(authority)) && r.set(&r.authority, authority)
}

// SetScheme sets the scheme.
func (r *Request) SetScheme(scheme []byte) bool {
	return ValidName(scheme) && r.set(&r.scheme, scheme)
}

// SetProtocol sets the :protocol of an extended CONNECT.
func (r *Request) SetProtocol(protocol []byte) bool {
	return ValidName(protocol) && r.set(&r.proto, protocol)
}

func (r *Request) set(s *span, p []byte) bool {
	n, ok := r.putSpan(p)
	if ok {
		*s = n
	}
	return ok
}

// SetLine records the request line as offsets of the bytes that Commit will be given; for codecs, see AddSpan.
func (r *Request) SetLine(id MethodID, methodLen, path, pathLen int) {
	r.methodID, r.method = id, span{0, uint32(methodLen)}
	r.path = span{uint32(path), uint32(pathLen)}
}

// SetAuthoritySpan records where the authority lies; for codecs, see AddSpan.
func (r *Request) SetAuthoritySpan(offset, length int) {
	r.authority = span{uint32(offset), uint32(length)}
}

// SetSchemeSpan records where the scheme lies; for codecs, see AddSpan.
func (r *Request) SetSchemeSpan(offset, length int) {
	r.scheme = span{uint32(offset), uint32(length)}
}

// Response is a response head.
type Response struct {
	Block
	Status int
	Proto  Proto

	reason span
}

// Reset empties the response and keeps a bounded amount of memory.
func (r *Response) Reset() {
	r.Block.Reset()
	r.Status, r.Proto, r.reason = 0, HTTP11, span{}
}

// CopyFrom makes the response a copy of another.
func (r *Response) CopyFrom(from *Response) {
	r.Block.CopyFrom(&from.Block)
	r.Status, r.Proto, r.reason = from.Status, from.Proto, from.reason
}

// Reason is the reason phrase that an HTTP/1 upstream sent, empty otherwise. HTTP/1 output writes the registered
// phrase where there is none.
func (r *Response) Reason() []byte { return r.at(r.reason) }

// SetReason sets the reason phrase.
func (r *Response) SetReason(reason []byte) bool {
	if !ValidValue(reason) {
		return false
	}
	s, ok := r.putSpan(reason)
	if ok {
		r.reason = s
	}
	return ok
}

// SetReasonSpan records where the reason phrase lies; for codecs, see AddSpan.
func (r *Response) SetReasonSpan(offset, length int) {
	r.reason = span{uint32(offset), uint32(length)}
}
