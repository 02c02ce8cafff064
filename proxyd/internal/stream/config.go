package stream

import (
	"strings"

	"retinue.dev/proxyd/internal/counters"
)

// Config is what streams know of their HTTP connection manager. It is built with a snapshot and never changes; every stream
// pins the one it began with. Durations are nanoseconds; 0 is off.
type Config struct {
	Name       string
	StatPrefix string

	RequestTimeout    int64 // request received as a whole
	StreamIdleTimeout int64 // nothing moves in either direction
	MaxStreamDuration int64

	// BufferLimit bounds what the stream keeps for one filter and direction, in bytes.
	BufferLimit int
	// ServerName is the value of Server on local replies.
	ServerName string
	// Filters are the factories of the chain before the router, in the order of the request.
	Filters []Factory
	// Routed tells that some route has filters of its own: the terminal is a Router.
	Routed bool
	// Logs are told of every stream at its end.
	Logs []AccessLog
	// Links tells that a log or a header wants facts of upstream connections.
	Links bool
	// Cells are the counters by worker.
	Cells []*counters.HTTP
}

// ChainName is the name of the filter chain: the listener's where it has one alone.
func (c *Config) ChainName() string {
	if at := strings.IndexByte(c.Name, '/'); at >= 0 {
		return c.Name[at+1:]
	}
	return c.Name
}

// AccessLog is told of a stream at its end, on the worker's thread. It takes what it needs from the stream, copied, and does not
// block or allocate.
type AccessLog interface {
	Log(s *Stream)
}
