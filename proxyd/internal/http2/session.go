package http2

import (
	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/hpack"
	"retinue.dev/proxyd/internal/http2frame"
)

// Output takes what a session writes: a connection, or a test's buffer.
type Output interface {
	// Stage takes bytes, borrowed for the call, that leave together when the loop's turn ends.
	Stage(b []byte)
	// Buffered is the bytes staged and not yet sent, BytesWritten those that have left, ever.
	Buffered() int
	BytesWritten() uint64
	// Push sends what is staged now, as far as it goes. Nothing is called back.
	Push()
}

// Handler is the codec above a session. A handler may call any method of the session from within a callback.
type Handler interface {
	// OnBegin asks for the memory of a stream that the client begins; OnHeaders follows. nil refuses the stream. Servers only.
	OnBegin() *Stream
	// OnHeaders brings a header section, which the handler decodes at once by the session's Decoder: a head, or trailers
	// when HeadSeen. end is END_STREAM. An error of compression ends the connection, any other one the stream.
	OnHeaders(st *Stream, block []byte, end bool) *hpack.Error
	// OnData brings a piece of the body, borrowed for the call; end comes with the last one, which may be empty.
	OnData(st *Stream, data []byte, end bool)
	// OnReset tells that the stream ended early: by the peer (remote), or for a fault of the peer's. Nothing can be sent any
	// more. OnClosed follows.
	OnReset(st *Stream, code http2frame.ErrCode, remote bool, detail string)
	// OnAboveHigh and OnBelowLow tell that bytes wait for the peer, and that there is room again. They alternate.
	OnAboveHigh(st *Stream)
	OnBelowLow(st *Stream)
	// OnClosed is the last of a stream: its memory is the handler's again.
	OnClosed(st *Stream)
	// OnSettings tells that the peer's settings have changed.
	OnSettings()
	// OnPong answers Ping.
	OnPong()
	// OnGoAway tells that the peer takes no new streams. Those of ours that it did not take have been reset with REFUSED_STREAM.
	OnGoAway(code http2frame.ErrCode)
	// OnFailed tells that the connection is at fault: GOAWAY is written. The owner abandons the session and closes.
	OnFailed(err *http2frame.Error)
}

// Shared is what the sessions of one worker share.
type Shared struct {
	Pool    *buffer.Pool
	scratch []byte
	ids     []uint32
	block   header.Block // for sections that nobody wants
}

// NewShared makes it.
func NewShared(pool *buffer.Pool) *Shared {
	return &Shared{Pool: pool, scratch: make([]byte, 0, 4<<10)}
}

const (
	keptScratch  = 64 << 10
	keptFragment = 16 << 10
	// mostFrame bounds our own DATA frames, whatever the peer allows, so that streams take turns.
	mostFrame = 16 << 10
)

// Session is one HTTP/2 connection. Init it, then Start; feed it until Failed. It belongs to one thread.
type Session struct {
	Decoder hpack.Decoder
	Encoder hpack.Encoder

	config   *Config
	handler  Handler
	out      Output
	shared   *Shared
	counters *Counters
	client   bool

	// What is read.
	preface       int // bytes of it that came
	settled       bool
	acknowledged  bool // the peer knows our settings
	failed        bool
	sequence      http2frame.Sequence
	left          int // bytes of the payload under way, which is passed on in pieces or skipped
	pad           int // of them padding, at its end
	data          *Stream
	dataEnd       bool
	flow          bool   // it is under flow control
	fragment      []byte // of a header section that goes on in CONTINUATION
	section       uint32 // whose it is
	sectionEnd    bool
	sectionFault  bool
	continuations uint32

	streams    table
	reset      recent
	lastPeer   uint32 // the highest stream that the peer has begun
	next       uint32 // the next one of ours
	goAwaySent bool   // the final one: later streams of the peer do not count
	goAwayGot  bool

	peerMaxFrame   int
	peerWindow     uint32
	peerMaxStreams uint32
	peerConnect    bool
	sendWindow     int32
	recvWindow     int32
	recvInitial    uint32 // of new streams
	credit         uint32
	blocked        bool
	pumping        bool
	waiting        Stream // sentinel of the ring of those with something to send

	out1, out2         waits  // frames that may wait to be sent: staged before the mark, and behind it
	outMark            uint64 // bytes of the connection
	empty, priorities  uint32
	updates            uint64
	opened, dataFrames uint64
	ended, premature   uint64
}

// Init makes the session ready: a server's, or a client's.
func (s *Session) Init(config *Config, client bool, shared *Shared, out Output, h Handler, counters *Counters) {
	*s = Session{
		config: config, client: client, shared: shared, out: out, handler: h, counters: counters,
		peerMaxFrame: http2frame.DefaultMaxFrameSize, peerWindow: http2frame.DefaultWindow, peerMaxStreams: 100,
		sendWindow: http2frame.DefaultWindow, recvWindow: http2frame.DefaultWindow,
		next: 1,
	}
	if !client {
		s.peerMaxStreams = 0
	}
	s.recvInitial = max(config.StreamWindow, http2frame.DefaultWindow) // the peer may not have heard of ours
	s.waiting.waitNext, s.waiting.waitPrev = &s.waiting, &s.waiting
	s.Decoder.Init(int(config.TableSize))
	s.Encoder.Init()
}

// Start writes what comes first.
func (s *Session) Start() {
	b := s.shared.scratch[:0]
	var settings [6]http2frame.Setting
	n := 0
	put := func(id http2frame.SettingID, v uint32) {
		settings[n] = http2frame.Setting{ID: id, Value: v}
		n++
	}
	if s.client {
		b = append(b, http2frame.Preface...)
		put(http2frame.EnablePush, 0)
		s.preface = len(http2frame.Preface)
	} else {
		put(http2frame.MaxConcurrentStreams, s.config.MaxConcurrentStreams)
		if s.config.Connect {
			put(http2frame.EnableConnectProtocol, 1)
		}
	}
	if s.config.TableSize != hpack.DefaultTableSize {
		put(http2frame.HeaderTableSize, s.config.TableSize)
	}
	put(http2frame.InitialWindowSize, s.config.StreamWindow)
	put(http2frame.MaxHeaderListSize, uint32(s.config.Headers.ListSize))
	b = http2frame.AppendSettings(b, settings[:n]...)
	if more := int64(s.config.ConnectionWindow) - http2frame.DefaultWindow; more > 0 {
		s.recvWindow = int32(s.config.ConnectionWindow)
		b = http2frame.AppendWindowUpdate(b, 0, uint32(more))
	}
	s.out.Stage(b)
	s.shared.scratch = b[:0]
}

// Failed tells that the connection is at fault and only waits to be closed.
func (s *Session) Failed() bool { return s.failed }

// Midway tells that a frame or a header section has begun and not ended: a peer may be kept to a time for it.
func (s *Session) Midway() bool { return s.sequence.Open() || !s.settled }

// Streams is the number of streams that are open.
func (s *Session) Streams() int { return s.streams.count }

// PeerConnect tells that the server takes extended CONNECT.
func (s *Session) PeerConnect() bool { return s.peerConnect }

// Settled tells that the peer's first SETTINGS have come.
func (s *Session) Settled() bool { return s.settled }

// Capacity is how many more streams a client may open now.
func (s *Session) Capacity() int {
	if s.failed || s.goAwayGot || s.next > http2frame.MaxStreamID {
		return 0
	}
	return int(min(s.peerMaxStreams, s.config.MaxConcurrentStreams)) - s.streams.count
}

// Exhausted tells that a client will never open another stream here.
func (s *Session) Exhausted() bool {
	return s.failed || s.goAwayGot || s.next > http2frame.MaxStreamID
}

// Each calls f for every open stream. f may end any of them.
func (s *Session) Each(f func(st *Stream)) {
	// Numbers, since memory of a stream that f ends may serve another session at once.
	ids := s.shared.ids[:0]
	s.shared.ids = nil
	for st := s.streams.first; st != nil; st = st.next {
		ids = append(ids, st.id)
	}
	for _, id := range ids {
		if st := s.streams.find(id); st != nil {
			f(st)
		}
	}
	s.shared.ids = ids
}

// Open begins a stream of ours. Clients only, and only with Capacity.
func (s *Session) Open(st *Stream) {
	st.begin(s.next, int32(s.peerWindow), int32(s.recvInitial))
	s.next += 2
	s.opened++
	s.streams.insert(st)
	s.counters[StreamsActive]++
}

// holds tells whether a stream is still the one of that number. A handler may end any stream from within a callback, and a flood of
// what we send ourselves ends them all; their memory may serve another connection at once.
func (s *Session) holds(st *Stream, id uint32) bool { return s.streams.find(id) == st }

// Abandon ends every stream because the connection has ended.
func (s *Session) Abandon(detail string) {
	s.failed = true
	for s.streams.first != nil {
		st := s.streams.first
		s.abort(st, http2frame.Cancel, true, detail)
	}
	s.fragment = nil
}

// close takes a stream out.
func (s *Session) close(st *Stream) {
	s.streams.remove(st)
	s.counters[StreamsActive]--
	st.open, st.localEnded, st.remoteEnded = false, true, true
	s.unwait(st)
	st.pending.Release(s.shared.Pool)
	if s.data == st {
		s.data = nil
	}
	s.ended++
	if held := st.held; held > 0 {
		st.held = 0
		s.creditConnection(held)
	}
	s.handler.OnClosed(st)
}

// abort tells the handler that the stream ended early and takes it out.
func (s *Session) abort(st *Stream, code http2frame.ErrCode, remote bool, detail string) {
	if !st.open {
		return
	}
	st.localEnded, st.remoteEnded = true, true
	id := st.id
	s.handler.OnReset(st, code, remote, detail)
	if s.holds(st, id) {
		s.close(st)
	}
}

// fault ends a stream for what the peer did with it.
func (s *Session) fault(st *Stream, code http2frame.ErrCode, detail string) {
	switch code {
	case http2frame.FlowControlError:
		s.counters[FlowControlError]++
	case http2frame.ProtocolError:
		s.counters[RxMessagingError]++
	}
	if !s.writeReset(st.id, code) {
		return
	}
	s.abort(st, code, false, detail)
	if !s.failed {
		s.Premature()
	}
}

// fail ends the connection.
func (s *Session) fail(err *http2frame.Error) {
	if s.failed {
		return
	}
	s.failed = true
	switch err {
	case errOutbound:
		s.counters[OutboundFlood]++
	case errControl:
		s.counters[OutboundControlFlood]++
	case errEmpty:
		s.counters[InboundEmptyFramesFlood]++
	case errPriority:
		s.counters[InboundPriorityFramesFlood]++
	case errUpdates:
		s.counters[InboundWindowUpdateFramesFlood]++
	case errContinuations:
		s.counters[InboundContinuationFlood]++
	case errResets:
		s.counters[PrematureResets]++
	case errWindow, errOverrun:
		s.counters[FlowControlError]++
	}
	b := http2frame.AppendGoAway(s.shared.scratch[:0], s.lastPeer, err.Code, err.Detail)
	s.out.Stage(b)
	s.shared.scratch = b[:0]
	s.counters[GoAwaySent]++
	s.handler.OnFailed(err)
}

// Premature counts a stream that the peer gave up before it could have been of use, or had reset by a fault of its own: the
// shape of a rapid-reset attack. At least half of many streams, or so many that no good ones could make up for them, end the
// connection (Envoy's envoy.reloadable premature-reset rule).
func (s *Session) Premature() {
	s.premature++
	limit := uint64(s.config.Flood.PrematureResetStreams)
	if limit > 0 && s.premature*2 >= max(limit, s.ended) {
		s.fail(errResets)
	}
}
