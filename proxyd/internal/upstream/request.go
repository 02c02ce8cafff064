package upstream

import (
	"crypto/sha1" //nolint:gosec // RFC 6455 says so; nothing is kept secret by it.
	"encoding/base64"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/hpack"
	"retinue.dev/proxyd/internal/http1"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/stream"
)

// Details of resets of HTTP/2 requests.
const (
	detailNoConnect = "http2.extended_connect_not_supported"
	detailInterim   = "http2.interim_response_with_end"
)

// request is one request on a session: stream.RequestEncoder towards the router. Its memory goes back to the manager when its
// stream has ended on the wire.
type request struct {
	wire     http2.Stream
	session  *session
	decoder  stream.ResponseDecoder // nil: nobody waits any more
	response header.Response
	trailers header.Block
	head     *header.Request // not sent yet: the server has not said whether it takes extended CONNECT
	began    int64
	method   header.MethodID
	priority cluster.Priority
	upgrade  bool // asks for a tunnel of the protocol that Upgrade names
	tunnel   bool
	key      [64]byte // Sec-WebSocket-Key
	keyLen   uint8
	next     *request
}

// keptRequests bounds the free list.
const keptRequests = 1024

func (m *Manager) takeRequest() *request {
	r := m.requests
	if r == nil {
		r = &request{}
		r.wire.Owner = r
		return r
	}
	m.requests, r.next = r.next, nil
	m.kept--
	return r
}

func (m *Manager) giveRequest(r *request) {
	r.session, r.decoder, r.head = nil, nil, nil
	if m.kept >= keptRequests {
		return
	}
	r.next, m.requests = m.requests, r
	m.kept++
}

// EncodeHeaders implements stream.RequestEncoder. An upgrade waits until the server has said that it takes extended CONNECT.
func (r *request) EncodeHeaders(h *header.Request, end bool) {
	if r.decoder == nil {
		return
	}
	r.upgrade, r.tunnel, r.keyLen = h.Has(header.Upgrade), false, 0
	if c := r.session; r.upgrade && !c.Settled() {
		r.head, r.next = h, c.held
		c.held = r
		return
	}
	r.send(h, end)
}

// send opens the stream.
func (r *request) send(h *header.Request, end bool) {
	c := r.session
	r.head = nil
	r.method = h.MethodID()
	if r.upgrade && !c.PeerConnect() {
		r.fail(stream.ResetProtocolError, detailNoConnect)
		r.release()
		return
	}
	c.Open(&r.wire)
	b, at := c.BeginSection()
	switch {
	case r.upgrade:
		b = r.extended(b, h)
	default:
		b = c.Encoder.AppendRequest(b, h)
	}
	if r.upgrade || r.method == header.MethodConnect {
		r.wire.SetTunnel()
		end = false
	}
	c.EndSection(&r.wire, b, at, end)
}

// extended writes an upgrade as a CONNECT that names its protocol (RFC 8441): all but the method stays.
func (r *request) extended(b []byte, h *header.Request) []byte {
	h.SetProtocol(h.Get(header.Upgrade))
	h.SetMethodID(header.MethodConnect)
	key := h.Get(header.SecWebSocketKey)
	r.keyLen = uint8(copy(r.key[:], key))
	h.RemoveID(header.SecWebSocketKey)
	b = r.session.Encoder.AppendRequest(b, h)
	h.SetMethodID(header.MethodGet)
	if r.keyLen > 0 {
		h.Add(header.SecWebSocketKey, nil, key)
	}
	return b
}

// switched makes the answer to an extended CONNECT what the answer to an upgrade is.
func (r *request) switched() {
	r.response.Status = 101
	r.response.SetString(header.Upgrade, "", "websocket")
	if r.keyLen > 0 {
		sum := sha1.Sum(append(append(make([]byte, 0, 128), r.key[:r.keyLen]...), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...)) //nolint:gosec // see above
		r.response.Set(header.SecWebSocketAccept, nil, base64.StdEncoding.AppendEncode(nil, sum[:]))
	}
}

// EncodeData implements stream.RequestEncoder.
func (r *request) EncodeData(data []byte, end bool) {
	if r.decoder != nil && r.wire.Open() {
		r.session.Send(&r.wire, data, end)
	}
}

// EncodeTrailers implements stream.RequestEncoder.
func (r *request) EncodeTrailers(t *header.Block) {
	if r.decoder != nil && r.wire.Open() {
		r.session.SendTrailers(&r.wire, t)
	}
}

// Reset implements stream.RequestEncoder.
func (r *request) Reset(stream.ResetReason) {
	if r.decoder == nil {
		return
	}
	c := r.session
	r.ended()
	c.host.countTxReset()
	if r.wire.Open() {
		c.Session.Reset(&r.wire, http2frame.Cancel)
		return
	}
	for at := &c.held; *at != nil; at = &(*at).next {
		if *at == r {
			*at = r.next
			r.next = nil
			break
		}
	}
	r.release()
}

// ReadDisable implements stream.RequestEncoder.
func (r *request) ReadDisable(disable bool) {
	if r.decoder == nil {
		return
	}
	r.session.host.countPause(disable)
	r.session.Pause(&r.wire, disable)
}

// BufferedBytes implements stream.RequestEncoder.
func (r *request) BufferedBytes() int { return r.wire.Buffered() }

// ended counts the request out.
func (r *request) ended() {
	r.decoder = nil
	r.session.host.requestEnded(r.priority)
}

// fail ends the request early.
func (r *request) fail(reason stream.ResetReason, detail string) {
	if decoder := r.decoder; decoder != nil {
		r.ended()
		r.session.host.countRxReset()
		decoder.OnReset(reason, detail)
	}
}

// release gives back the memory of a request whose stream has ended or never began.
func (r *request) release() {
	c := r.session
	c.host.pool.manager.giveRequest(r)
	if c.Streams() == 0 && c.held == nil {
		c.idleSince = c.transport.Worker().Now()
		c.closeWhenEmpty()
	}
}

// OnHeaders implements http2.Handler: interim responses, the final one, trailers.
func (c *frames) OnHeaders(st *http2.Stream, block []byte, end bool) *hpack.Error {
	r := st.Owner.(*request)
	limits := &c.host.pool.config.HTTP2.Headers
	if st.HeadSeen() {
		if err := c.Decoder.Trailers(block, &r.trailers, limits); err != nil {
			return err
		}
		if r.decoder == nil {
			return nil
		}
		if r.tunnel || r.trailers.Len() == 0 {
			r.decoder.DecodeData(nil, true)
		} else {
			r.decoder.DecodeTrailers(&r.trailers)
		}
		r.responseEnded()
		return nil
	}
	length, err := c.Decoder.Response(block, &r.response, limits)
	if err != nil {
		return err
	}
	status := r.response.Status
	if status < 200 {
		if end {
			return errInterim
		}
		if r.decoder != nil {
			r.decoder.DecodeInterim(&r.response)
		}
		return nil
	}
	bodiless := r.method == header.MethodHead || status == 304 || status == 204
	c.SetHeadSeen(st, length, bodiless)
	if !bodiless {
		if err := st.Expect(length); err != nil {
			return err
		}
	}
	if failed := http1.StripHopByHop(&r.response.Block, false, http1.Upstream); failed != nil {
		return &hpack.Error{Detail: failed.Detail}
	}
	c.host.countStatus(&r.response)
	if r.decoder == nil {
		return nil
	}
	if r.tunnel = status/100 == 2 && (r.upgrade || r.method == header.MethodConnect); r.tunnel && r.upgrade {
		r.switched()
	}
	r.decoder.DecodeHeaders(&r.response, end && !r.tunnel)
	if end {
		if r.tunnel && r.decoder != nil {
			r.decoder.DecodeData(nil, true)
		}
		r.responseEnded()
	}
	return nil
}

var errInterim = &hpack.Error{Detail: detailInterim}

// OnData implements http2.Handler.
func (c *frames) OnData(st *http2.Stream, data []byte, end bool) {
	r := st.Owner.(*request)
	if r.decoder == nil {
		return
	}
	r.decoder.DecodeData(data, end)
	if end {
		r.responseEnded()
	}
}

// responseEnded ends the request with its response; a tunnel ends with its other direction.
func (r *request) responseEnded() {
	if r.decoder == nil || r.tunnel {
		return // reset from within the last callback
	}
	c := r.session
	c.host.observe(c.transport.Worker().Now() - r.began)
	r.ended()
	c.countBytes()
}

// OnAboveHigh implements http2.Handler.
func (c *frames) OnAboveHigh(st *http2.Stream) {
	if r := st.Owner.(*request); r.decoder != nil {
		r.decoder.OnAboveHigh()
	}
}

// OnBelowLow implements http2.Handler.
func (c *frames) OnBelowLow(st *http2.Stream) {
	if r := st.Owner.(*request); r.decoder != nil {
		r.decoder.OnBelowLow()
	}
}

// OnReset implements http2.Handler.
func (c *frames) OnReset(st *http2.Stream, code http2frame.ErrCode, remote bool, detail string) {
	reason := stream.ResetProtocolError
	switch {
	case c.Failed():
		reason = c.reason
	case code == http2frame.RefusedStream && remote:
		reason = stream.ResetRefused
	case remote:
		reason = stream.ResetRemote
	}
	st.Owner.(*request).fail(reason, detail)
}

// OnClosed implements http2.Handler.
func (c *frames) OnClosed(st *http2.Stream) {
	r := st.Owner.(*request)
	if r.decoder != nil { // a tunnel whose directions have both ended
		r.ended()
	}
	r.release()
	if c.host.queued > 0 {
		c.host.serve()
	}
}
