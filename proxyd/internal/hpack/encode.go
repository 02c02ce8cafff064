package hpack

import (
	"encoding/binary"
	"strconv"
	"unsafe"

	"retinue.dev/proxyd/internal/header"
)

// Encoder is the encoding half of a connection. Init it first; it lives as long as its connection, on its thread. What it
// appends must be sent, in the order in which it was appended.
//
// Fields whose values repeat from message to message go through the dynamic table; what identifies or differs goes as
// a literal, and credentials as literals that no one may index (RFC 7541 7.1.3).
type Encoder struct {
	table table
	// cache finds entries of the table by a hash of name and value. A newer entry takes the place of an older one.
	cache [cacheSlots]uint64 // the number of an entry, from 1
	// A change of the table's size that the peer has not been told: the least size since, and the size now.
	update      bool
	least, size int
}

const (
	cacheSlots = 64
	// maxIndexed bounds the values that are worth a place in the table.
	maxIndexed = 512
)

// repeating are the fields that go through the dynamic table.
var repeating = header.MaskOf(
	header.Accept, header.AcceptEncoding, header.AcceptLanguage, header.AcceptRanges, header.UserAgent,
	header.ContentType, header.ContentEncoding, header.ContentLanguage, header.CacheControl, header.Server,
	header.Date, header.Vary, header.Via, header.StrictTransportSecurity, header.Allow, header.AltSvc,
	header.AccessControlAllowOrigin, header.AccessControlAllowCredentials, header.AccessControlAllowHeaders,
	header.AccessControlAllowMethods, header.AccessControlExposeHeaders, header.AccessControlMaxAge,
	header.ContentSecurityPolicy, header.XContentTypeOptions, header.XFrameOptions, header.XXSSProtection,
	header.ReferrerPolicy, header.XPoweredBy, header.Origin, header.SecFetchSite, header.SecFetchMode,
	header.SecFetchDest, header.SecFetchUser, header.SecCHUA, header.SecCHUAMobile, header.SecCHUAPlatform,
	header.UpgradeInsecureRequests, header.Priority, header.Pragma, header.TE, header.GrpcStatus,
	header.GrpcEncoding, header.GrpcAcceptEncoding, header.XForwardedProto, header.XForwardedHost,
	header.XForwardedPort, header.XForwardedFor,
)

// secret are the fields that must not be guessed by the length of what shares a table with them.
var secret = header.MaskOf(header.Authorization, header.ProxyAuthorization, header.Cookie, header.SetCookie)

// notSent are the fields that HTTP/2 has no use for, or carries otherwise.
var notSent = header.MaskOf(
	header.Connection, header.KeepAlive, header.ProxyConnection, header.TransferEncoding, header.Upgrade,
	header.Host, header.HTTP2Settings,
)

// literalNames are the names that are known but not in the static table, as string literals.
var literalNames = func() (t [header.NumIDs][]byte) {
	for id := header.ID(staticLen - staticFirst + 1); id < header.NumIDs; id++ {
		t[id] = appendString(nil, id.Lower())
	}
	return t
}()

// Init makes the encoder ready for a peer that has announced nothing yet.
func (e *Encoder) Init() {
	*e = Encoder{size: DefaultTableSize}
	e.table.max = DefaultTableSize
}

// SetTableSize tells the peer's SETTINGS_HEADER_TABLE_SIZE. The next section begins with the change.
func (e *Encoder) SetTableSize(n uint32) {
	size := int(min(n, DefaultTableSize))
	if size == e.size {
		return
	}
	if !e.update {
		e.update, e.least = true, size
	}
	e.least = min(e.least, size)
	e.size = size
	e.table.setMax(size)
}

// AppendRequest appends the header section of a request.
func (e *Encoder) AppendRequest(dst []byte, r *header.Request) []byte {
	dst = e.begin(dst)
	switch id := r.MethodID(); id {
	case header.MethodGet:
		dst = append(dst, 0x80|2)
	case header.MethodPost:
		dst = append(dst, 0x80|3)
	default:
		dst = appendString(append(dst, 2), r.Method())
	}
	connect := r.MethodID() == header.MethodConnect
	if !connect || len(r.Protocol()) > 0 {
		if string(r.Scheme()) == "https" {
			dst = append(dst, 0x80|7)
		} else {
			dst = append(dst, 0x80|6)
		}
		switch path := r.Path(); string(path) {
		case "/", "":
			dst = append(dst, 0x80|4)
		default:
			dst = appendString(append(dst, 4), path)
		}
	}
	dst = e.indexed(dst, pseudoAuthority, 1, r.Authority())
	if p := r.Protocol(); connect && len(p) > 0 {
		dst = appendString(append(dst, 0), stringBytes(pseudoName(pseudoProtocol)))
		dst = appendString(dst, p)
	}
	return e.fields(dst, &r.Block)
}

// AppendResponse appends the header section of a response, interim ones included.
func (e *Encoder) AppendResponse(dst []byte, r *header.Response) []byte {
	dst = e.begin(dst)
	switch r.Status {
	case 200:
		dst = append(dst, 0x80|8)
	case 204:
		dst = append(dst, 0x80|9)
	case 206:
		dst = append(dst, 0x80|10)
	case 304:
		dst = append(dst, 0x80|11)
	case 400:
		dst = append(dst, 0x80|12)
	case 404:
		dst = append(dst, 0x80|13)
	case 500:
		dst = append(dst, 0x80|14)
	default:
		var digits [8]byte
		dst = e.indexed(dst, pseudoStatus, 8, strconv.AppendInt(digits[:0], int64(r.Status), 10))
	}
	return e.fields(dst, &r.Block)
}

// AppendTrailers appends a trailer section.
func (e *Encoder) AppendTrailers(dst []byte, b *header.Block) []byte {
	return e.fields(e.begin(dst), b)
}

// begin writes the table size updates that are due: the least size first, since the peer must evict as we did
// (RFC 7541 4.2).
func (e *Encoder) begin(dst []byte) []byte {
	if !e.update {
		return dst
	}
	e.update = false
	if e.least < e.size {
		dst = appendInt(dst, 0x20, 5, uint32(e.least))
	}
	return appendInt(dst, 0x20, 5, uint32(e.size))
}

func (e *Encoder) fields(dst []byte, b *header.Block) []byte {
	for i := range b.Len() {
		id := b.IDAt(i)
		value := b.ValueAt(i)
		switch {
		case id == header.Other:
			dst = appendString(append(dst, 0), b.NameAt(i))
			dst = appendString(dst, value)
			continue
		case notSent.Has(id):
			continue
		case id == header.TE && string(value) != "trailers":
			continue
		}
		index := uint32(0)
		if id <= staticLen-staticFirst {
			index = uint32(id) + staticFirst
		}
		switch {
		case id == header.AcceptEncoding && string(value) == "gzip, deflate":
			dst = append(dst, 0x80|16)
		case repeating.Has(id) && len(value) <= maxIndexed:
			dst = e.indexed(dst, id, index, value)
		case secret.Has(id):
			dst = appendString(appendName(dst, 0x10, 4, id, index), value)
		default:
			dst = appendString(appendName(dst, 0, 4, id, index), value)
		}
	}
	return dst
}

// indexed writes a field as an index of the dynamic table, or as a literal that makes one. index is that of the name in
// the static table, 0 for none.
func (e *Encoder) indexed(dst []byte, id header.ID, index uint32, value []byte) []byte {
	slot := &e.cache[hash(id, value)]
	if age := e.table.newest - *slot; *slot != 0 && age < uint64(e.table.count) {
		if entry := e.table.at(int(age)); entry.id == id && string(e.table.value(entry)) == string(value) {
			return appendInt(dst, 0x80, 7, staticLen+1+uint32(age))
		}
	}
	if e.table.insert(id, nil, value, false) {
		*slot = e.table.newest
	}
	return appendString(appendName(dst, 0x40, 6, id, index), value)
}

// hash mixes the ends of a value, which is enough to tell the values of one field apart; entries are compared.
func hash(id header.ID, value []byte) uint64 {
	h := uint64(id)<<8 | uint64(len(value))
	switch n := len(value); {
	case n >= 8:
		h ^= binary.LittleEndian.Uint64(value) * 0x9e3779b97f4a7c15
		h += binary.LittleEndian.Uint64(value[n-8:])
		h ^= binary.LittleEndian.Uint64(value[n/2-4:]) << 1
	default:
		for _, c := range value {
			h = h*31 + uint64(c)
		}
	}
	return h * 0x9e3779b97f4a7c15 >> 58
}

// appendName begins a literal: its kind, and its name as an index or as a string.
func appendName(dst []byte, first byte, prefix uint8, id header.ID, index uint32) []byte {
	if index != 0 {
		return appendInt(dst, first, prefix, index)
	}
	return append(append(dst, first), literalNames[id]...)
}

// appendInt appends an integer of RFC 7541 5.1 behind the bits of first.
func appendInt(dst []byte, first byte, prefix uint8, v uint32) []byte {
	limit := uint32(1)<<prefix - 1
	if v < limit {
		return append(dst, first|byte(v))
	}
	dst = append(dst, first|byte(limit))
	for v -= limit; v >= 0x80; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

// appendString appends a string literal, in Huffman code where that is shorter.
func appendString(dst, s []byte) []byte {
	if n := huffmanLen(s); n < len(s) {
		return appendHuffman(appendInt(dst, 0x80, 7, uint32(n)), s)
	}
	return append(appendInt(dst, 0, 7, uint32(len(s))), s...)
}

func stringBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
