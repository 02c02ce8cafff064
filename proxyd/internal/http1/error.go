package http1

// Error is why a message was refused. Errors are constants of this package: they hold nothing of the message and
// are compared by address.
type Error struct {
	// Status is the answer to a request that is refused; 502 for a response of an upstream.
	Status int
	// Detail is what RESPONSE_CODE_DETAILS shows, in Envoy's manner: "http1.…".
	Detail string
}

// Error implements error.
func (e *Error) Error() string { return e.Detail }

// Side says whose messages a decoder reads, and so with which status they are refused.
type Side uint8

// The two sides.
const (
	Downstream Side = iota // requests
	Upstream               // responses
)

type fault uint8

const (
	ok fault = iota
	badRequestLine
	badMethod
	badTarget
	badScheme
	badVersion
	notHTTP
	badStatusLine
	lineTooLong
	headTooLarge
	tooManyFields
	badLineEnd
	badName
	badValue
	obsFold
	missingHost
	duplicateHost
	badHost
	badLength
	duplicateLength
	lengthAndCoding
	badCoding
	unknownCoding
	codingNotAllowed
	badConnection
	badChunkSize
	badChunk
	chunkExtensionTooLarge
	trailersTooLarge
	truncated
	numFaults
)

var downstreamErrors = [numFaults]Error{
	badRequestLine:         {400, "http1.invalid_request_line"},
	badMethod:              {400, "http1.invalid_method"},
	badTarget:              {400, "http1.invalid_url"},
	badScheme:              {400, "http1.invalid_scheme"},
	badVersion:             {505, "http1.unsupported_version"},
	notHTTP:                {400, "http1.not_http"},
	badStatusLine:          {502, "http1.invalid_status_line"},
	lineTooLong:            {414, "http1.request_line_too_large"},
	headTooLarge:           {431, "http1.headers_too_large"},
	tooManyFields:          {431, "http1.too_many_headers"},
	badLineEnd:             {400, "http1.invalid_line_end"},
	badName:                {400, "http1.invalid_header_name"},
	badValue:               {400, "http1.invalid_characters"},
	obsFold:                {400, "http1.obs_fold"},
	missingHost:            {400, "http1.missing_host"},
	duplicateHost:          {400, "http1.duplicate_host"},
	badHost:                {400, "http1.invalid_host"},
	badLength:              {400, "http1.invalid_content_length"},
	duplicateLength:        {400, "http1.duplicate_content_length"},
	lengthAndCoding:        {400, "http1.content_length_and_chunked_not_allowed"},
	badCoding:              {400, "http1.invalid_transfer_encoding"},
	unknownCoding:          {501, "http1.unknown_transfer_coding"},
	codingNotAllowed:       {400, "http1.transfer_encoding_not_allowed"},
	badConnection:          {400, "http1.connection_header_rejected"},
	badChunkSize:           {400, "http1.invalid_chunk_size"},
	badChunk:               {400, "http1.invalid_chunk"},
	chunkExtensionTooLarge: {400, "http1.chunk_extension_too_large"},
	trailersTooLarge:       {431, "http1.trailers_too_large"},
	truncated:              {400, "http1.incomplete_message"},
}

// NotHTTP is a request line whose third word names another protocol: its sender would take an answer in HTTP for something else.
var NotHTTP = &downstreamErrors[notHTTP]

var upstreamErrors = func() (t [numFaults]Error) {
	for f, e := range downstreamErrors {
		t[f] = Error{502, e.Detail}
	}
	t[lineTooLong].Detail = "http1.status_line_too_large"
	return t
}()

func (s Side) fault(f fault) *Error {
	if f == ok {
		return nil
	}
	if s == Upstream {
		return &upstreamErrors[f]
	}
	return &downstreamErrors[f]
}
