package pluginsdk

import (
	"time"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// BodyMode says how much of a body a filter sees.
type BodyMode = filterv1.BodyMode

// The body modes. A filter that implements a body phase and asks for None gets Stream.
const (
	None   = filterv1.BodyMode_BODY_NONE
	Prefix = filterv1.BodyMode_BODY_PREFIX
	Stream = filterv1.BodyMode_BODY_STREAM
	Buffer = filterv1.BodyMode_BODY_BUFFER
)

// Wants is what a filter asks for beside its phases. The zero value is the phases alone, without any header.
type Wants struct {
	RequestHeaders  []string // lower case; ":method", ":path", ":authority", ":scheme" too; "*" is all
	ResponseHeaders []string // ":status" too
	Attributes      []string // "source.address", "route.name" …
	RequestBody     BodyMode
	ResponseBody    BodyMode
	PrefixBytes     int // of Prefix
	BufferBytes     int // of Buffer
	// When keeps requests that do not meet all conditions from leaving the proxy.
	When []*Condition
	// ObserveOnly: answers are not waited for and not used.
	ObserveOnly bool
	// CacheKey names the headers that decide the answer to OnRequest alone: the proxy repeats an answer with a TTL itself.
	CacheKey []string
	// MaxInFlight bounds unanswered calls of a worker; 0 leaves it to the configuration.
	MaxInFlight int
}

// Condition compares a request header or pseudo header.
type Condition = filterv1.Condition

// Equal, HasPrefix, Contains and Present make conditions.
func Equal(name, value string) *Condition {
	return &Condition{Name: name, Compare: filterv1.Compare_COMPARE_EQUAL, Value: value}
}

// HasPrefix is true for values that begin with value.
func HasPrefix(name, value string) *Condition {
	return &Condition{Name: name, Compare: filterv1.Compare_COMPARE_PREFIX, Value: value}
}

// Contains is true for values with value in them.
func Contains(name, value string) *Condition {
	return &Condition{Name: name, Compare: filterv1.Compare_COMPARE_CONTAINS, Value: value}
}

// Present is true when there is such a header.
func Present(name string) *Condition {
	return &Condition{Name: name, Compare: filterv1.Compare_COMPARE_PRESENT}
}

// Not turns a condition round.
func Not(c *Condition) *Condition {
	return &Condition{Name: c.GetName(), Compare: c.GetCompare(), Value: c.GetValue(), Negate: !c.GetNegate()}
}

// Filter is one configured filter: what Plugin.Configure returns. One value serves all streams; what belongs to a stream goes into
// StreamState.Value.
type Filter interface{ Wants() Wants }

// The phases of HTTP. A filter implements those that it wants.
type (
	// RequestFilter is asked about each request head.
	RequestFilter interface{ OnRequest(h *Head) Answer }
	// RequestBodyFilter is given the request's body as Wants.RequestBody says.
	RequestBodyFilter interface{ OnRequestBody(b *Body) Answer }
	// RequestTrailersFilter is asked about trailers.
	RequestTrailersFilter interface{ OnRequestTrailers(h *Head) Answer }
	// ResponseFilter is asked about each response head.
	ResponseFilter interface{ OnResponse(h *Head) Answer }
	// ResponseBodyFilter is given the response's body as Wants.ResponseBody says.
	ResponseBodyFilter interface{ OnResponseBody(b *Body) Answer }
	// ResponseTrailersFilter is asked about trailers.
	ResponseTrailersFilter interface{ OnResponseTrailers(h *Head) Answer }
	// EndFilter is told that a stream is over.
	EndFilter interface{ OnEnd(s *StreamState) }
)

// NetworkFilter is asked about connections of a tcp block. Body.Data is what came; Answer.Body replaces it, and Answer.Close ends the
// connection. Pass asks for no more of it: the proxy then moves the bytes by itself.
type NetworkFilter interface {
	OnConnect(h *Head) Answer
	OnRead(b *Body) Answer
	OnWrite(b *Body) Answer
	OnClose(s *StreamState)
}

// StreamState is one request, or one connection, as the filter sees it.
type StreamState struct {
	ID uint64
	// Value is the filter's own.
	Value any
}

// Head is a request or response head in a call, or its trailers. Valid for the call.
type Head struct {
	Stream *StreamState
	// End tells that nothing follows in this direction.
	End   bool
	event *event
}

// Get is the first value of a header that the filter asked for, lower case; "" when there is none.
func (h *Head) Get(name string) string { return first(h.event.headers, name) }

// Attribute is the value of an attribute that the filter asked for.
func (h *Head) Attribute(name string) string { return first(h.event.attributes, name) }

// All calls f with every header in order until it answers false.
func (h *Head) All(f func(name string, value []byte) bool) {
	for i := range h.event.headers {
		if x := &h.event.headers[i]; !f(string(x.name), x.value) {
			return
		}
	}
}

// Set begins an answer that sets a header and continues.
func (h *Head) Set(name, value string) Answer { return Answer{}.Set(name, value) }

func first(list []field, name string) string {
	for i := range list {
		if string(list[i].name) == name {
			return string(list[i].value)
		}
	}
	return ""
}

// Body is a piece of a body in a call, or all of it. Data is valid for the call.
type Body struct {
	Stream *StreamState
	Data   []byte
	End    bool
}

// Answer is what a filter says to a call. The zero value continues. Methods return a changed copy, so that answers chain:
// Answer{}.Set("x-a", "1").Remove("x-b").
type Answer struct {
	action   filterv1.Action
	ops      []op
	body     []byte
	replaced bool
	status   int // of RESPOND
	inject   []byte
	modes    bool
	request  BodyMode
	response BodyMode
	ttl      int
	detail   string
}

type op struct {
	kind        filterv1.Op
	name, value string
}

// Continue lets the call's subject pass as it is.
func Continue() Answer { return Answer{} }

// Respond answers the request; Set and Add then are about the response.
func Respond(status int, body string) Answer {
	return Answer{action: filterv1.Action_ACTION_RESPOND, status: status, body: []byte(body)}
}

// Skip continues and asks for no more calls about this stream. For a connection: pass from now on.
func Skip() Answer { return Answer{action: filterv1.Action_ACTION_SKIP_REST} }

// Close ends a connection.
func Close() Answer { return Answer{action: filterv1.Action_ACTION_CLOSE} }

func (a Answer) with(kind filterv1.Op, name, value string) Answer {
	a.ops = append(a.ops[:len(a.ops):len(a.ops)], op{kind, name, value})
	return a
}

// Set makes a header the only one of its name.
func (a Answer) Set(name, value string) Answer { return a.with(filterv1.Op_OP_SET, name, value) }

// Add appends a header.
func (a Answer) Add(name, value string) Answer { return a.with(filterv1.Op_OP_ADD, name, value) }

// Remove removes all headers of a name.
func (a Answer) Remove(name string) Answer { return a.with(filterv1.Op_OP_REMOVE, name, "") }

// Replace puts other bytes into the place of the call's body.
func (a Answer) Replace(body []byte) Answer {
	a.body, a.replaced = body, true
	return a
}

// Inject sends bytes back to the side that the call's bytes came from (network).
func (a Answer) Inject(data []byte) Answer {
	a.inject = data
	return a
}

// Mode changes what this stream sees of its bodies from now on.
func (a Answer) Mode(request, response BodyMode) Answer {
	a.modes, a.request, a.response = true, request, response
	return a
}

// Cache lets the proxy repeat the answer for that long to requests with the same Wants.CacheKey.
func (a Answer) Cache(ttl time.Duration) Answer {
	a.ttl = int(ttl.Milliseconds())
	return a
}

// Detail is written to the access log: a word of at most 64 bytes.
func (a Answer) Detail(word string) Answer {
	a.detail = word
	return a
}
