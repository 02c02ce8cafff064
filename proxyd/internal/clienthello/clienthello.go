// Package clienthello reads the first message of a TLS client, without any cryptography: the server name and the protocols that it
// offers, by which a connection finds its filter chain. Pure.
package clienthello

import "encoding/binary"

// MaxSize bounds what is looked at, record headers included: Envoy's limit.
const MaxSize = 16 << 10

// Hello is what a client says. The slices are parts of what was parsed, or of Scratch.
type Hello struct {
	SNI  []byte // as sent; nil: none
	alpn []byte // the list as it is on the wire
	// Scratch puts a message together that comes in several records.
	Scratch []byte
}

// Result says how far the parser came.
type Result uint8

const (
	More      Result = iota // the message is not complete
	Done                    // it is
	NotTLS                  // the bytes are something else
	Malformed               // they begin as TLS and break its rules, or are longer than MaxSize
)

// Parse looks at the bytes that a client has sent first.
func (h *Hello) Parse(b []byte) Result {
	h.SNI, h.alpn = nil, nil
	message, result := h.assemble(b)
	if result != Done {
		return result
	}
	if !h.message(message) {
		h.SNI, h.alpn = nil, nil
		return Malformed
	}
	return Done
}

// assemble takes the handshake message out of its records.
func (h *Hello) assemble(b []byte) ([]byte, Result) {
	h.Scratch = h.Scratch[:0]
	seen, want := 0, 4 // of the message: its own header first
	var whole []byte
	for at := 0; ; {
		rest := b[at:]
		switch {
		case len(rest) > 0 && rest[0] != 22 || len(rest) > 1 && rest[1] != 3:
			if at == 0 {
				return nil, NotTLS
			}
			return nil, Malformed
		case len(rest) < 5:
			return nil, tooLong(b)
		}
		size := int(binary.BigEndian.Uint16(rest[3:]))
		if size == 0 || size > MaxSize {
			return nil, Malformed
		}
		part := rest[5:min(len(rest), 5+size)]
		if whole == nil {
			whole = part
		} else {
			if len(h.Scratch) == 0 {
				h.Scratch = append(h.Scratch, whole...)
			}
			h.Scratch = append(h.Scratch, part...)
			whole = h.Scratch
		}
		seen = len(whole)
		if seen >= 1 && whole[0] != 1 {
			return nil, Malformed
		}
		if seen >= 4 {
			if want = 4 + int(whole[1])<<16 + int(whole[2])<<8 + int(whole[3]); want > MaxSize {
				return nil, Malformed
			}
		}
		if seen >= 4 && seen >= want {
			return whole[4:want], Done
		}
		if len(rest) < 5+size {
			return nil, tooLong(b)
		}
		at += 5 + size
	}
}

func tooLong(b []byte) Result {
	if len(b) >= MaxSize {
		return Malformed
	}
	return More
}

// message reads a ClientHello (RFC 8446 4.1.2).
func (h *Hello) message(b []byte) bool {
	if len(b) < 2+32 {
		return false
	}
	b = b[2+32:]
	var ok bool
	if _, b, ok = vector(b, 1); !ok { // session id
		return false
	}
	if _, b, ok = vector(b, 2); !ok { // cipher suites
		return false
	}
	if _, b, ok = vector(b, 1); !ok { // compression
		return false
	}
	if len(b) == 0 {
		return true // no extensions
	}
	extensions, rest, ok := vector(b, 2)
	if !ok || len(rest) > 0 {
		return false
	}
	for len(extensions) > 0 {
		if len(extensions) < 4 {
			return false
		}
		kind := binary.BigEndian.Uint16(extensions)
		var body []byte
		if body, extensions, ok = vector(extensions[2:], 2); !ok {
			return false
		}
		switch kind {
		case 0:
			if !h.serverName(body) {
				return false
			}
		case 16:
			list, rest, ok := vector(body, 2)
			if !ok || len(rest) > 0 {
				return false
			}
			h.alpn = list
		}
	}
	return true
}

// serverName reads the extension (RFC 6066 3).
func (h *Hello) serverName(b []byte) bool {
	list, rest, ok := vector(b, 2)
	if !ok || len(rest) > 0 {
		return false
	}
	for len(list) > 0 {
		kind := list[0]
		var name []byte
		if name, list, ok = vector(list[1:], 2); !ok {
			return false
		}
		if kind == 0 && h.SNI == nil {
			h.SNI = name
		}
	}
	return true
}

// vector splits a vector with a length of that many bytes off.
func vector(b []byte, size int) (body, rest []byte, ok bool) {
	if len(b) < size {
		return nil, nil, false
	}
	n := 0
	for _, x := range b[:size] {
		n = n<<8 | int(x)
	}
	if b = b[size:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

// Offers tells whether the client offers a protocol.
func (h *Hello) Offers(protocol string) bool {
	for list := h.alpn; len(list) > 0; {
		name, rest, ok := vector(list, 1)
		if !ok {
			return false
		}
		if string(name) == protocol {
			return true
		}
		list = rest
	}
	return false
}
