package callout

import (
	"encoding/binary"
	"strconv"

	"retinue.dev/proxyd/internal/header"
)

// GRPC makes the call one of gRPC with one message each way: the method's path, the authority, and the time that it may take. The body
// of Start is the message behind GRPCPrefix.
func (c *Call) GRPC(path, authority []byte, timeout int64) {
	r := &c.Request
	r.SetMethodID(header.MethodPost)
	r.SetScheme(schemeHTTP)
	r.SetAuthority(authority)
	r.SetPath(path)
	r.AddString(header.TE, "", "trailers")
	r.AddString(header.ContentType, "", "application/grpc")
	var text [24]byte
	r.Add(header.GrpcTimeout, nil, append(strconv.AppendInt(text[:0], Milliseconds(timeout), 10), 'm'))
}

var schemeHTTP = []byte("http")

// prefix is the bytes before a message: a flag and the length.
const prefix = 5

// GRPCPrefix makes room before a message; GRPCLength fills it in.
func GRPCPrefix(dst []byte) []byte { return append(dst, 0, 0, 0, 0, 0) }

// GRPCLength completes the prefix of a message that begins the bytes.
func GRPCLength(message []byte) {
	binary.BigEndian.PutUint32(message[1:], uint32(len(message)-prefix))
}

// GRPCAnswer is the message of the answer and its status; ok is false for an answer that is none of gRPC.
func (c *Call) GRPCAnswer() (message []byte, status int, ok bool) {
	if c.Response.Status != 200 {
		return nil, 0, false
	}
	text := c.Trailers.Get(header.GrpcStatus)
	if text == nil {
		text = c.Response.Get(header.GrpcStatus)
	}
	status, err := strconv.Atoi(string(text))
	if err != nil {
		return nil, 0, false
	}
	if status != 0 {
		return nil, status, true
	}
	if len(c.Body) < prefix || c.Body[0] != 0 || uint64(binary.BigEndian.Uint32(c.Body[1:])) != uint64(len(c.Body)-prefix) {
		return nil, 0, false
	}
	return c.Body[prefix:], 0, true
}
