// Package hpack is header compression for HTTP/2 (RFC 7541) straight into and out of header blocks, with the rules of
// RFC 9113 8 on what a header section may say.
//
// Names that the suite knows are integers in the static table, in the dynamic tables and in blocks alike, and values
// are copied once, from the wire or the table into the block. Nothing allocates once tables and blocks have grown.
package hpack

// DefaultTableSize is SETTINGS_HEADER_TABLE_SIZE unless a peer says otherwise, and the most that our encoder uses.
const DefaultTableSize = 4096

// Limits bounds a header section.
type Limits struct {
	// ListSize is SETTINGS_MAX_HEADER_LIST_SIZE: names, values and 32 for each field.
	ListSize int
	// Fields is the greatest number of fields, those with a colon not counted.
	Fields int
}

// DefaultLimits are Envoy's.
var DefaultLimits = Limits{ListSize: 60 << 10, Fields: 100}

// Error is why a header section was refused. Errors are constants and are compared by address.
type Error struct {
	// Compression tells that the decoder's state is lost: the connection ends with COMPRESSION_ERROR. Otherwise only the
	// stream is at fault: it ends with PROTOCOL_ERROR, or with Status where that is not 0.
	Compression bool
	// Status is what a server may answer instead of a reset: 431, 400.
	Status int
	// Detail is what RESPONSE_CODE_DETAILS shows.
	Detail string
}

// Error implements error.
func (e *Error) Error() string { return e.Detail }

var (
	errIndex     = &Error{Compression: true, Detail: "hpack.invalid_index"}
	errInteger   = &Error{Compression: true, Detail: "hpack.invalid_integer"}
	errTruncated = &Error{Compression: true, Detail: "hpack.truncated"}
	errHuffman   = &Error{Compression: true, Detail: "hpack.invalid_huffman"}
	errTableSize = &Error{Compression: true, Detail: "hpack.invalid_table_size"}

	errName        = &Error{Detail: "http2.invalid_header_name"}
	errValue       = &Error{Detail: "http2.invalid_characters"}
	errConnection  = &Error{Detail: "http2.connection_specific_header"}
	errTE          = &Error{Detail: "http2.invalid_te"}
	errPseudo      = &Error{Detail: "http2.invalid_pseudo_header"}
	errPseudoTwice = &Error{Detail: "http2.duplicate_pseudo_header"}
	errPseudoLate  = &Error{Detail: "http2.pseudo_header_after_header"}
	errMissing     = &Error{Detail: "http2.missing_pseudo_header"}
	errMethod      = &Error{Detail: "http2.invalid_method"}
	errPath        = &Error{Detail: "http2.invalid_url"}
	errScheme      = &Error{Detail: "http2.invalid_scheme"}
	errAuthority   = &Error{Detail: "http2.invalid_authority"}
	errHost        = &Error{Detail: "http2.host_and_authority_differ"}
	errStatus      = &Error{Detail: "http2.invalid_status"}
	errLength      = &Error{Detail: "http2.invalid_content_length"}
	errTooLarge    = &Error{Status: 431, Detail: "http2.headers_too_large"}
	errTooMany     = &Error{Status: 431, Detail: "http2.too_many_headers"}
)
