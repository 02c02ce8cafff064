package http2

import (
	"retinue.dev/proxyd/internal/hpack"
	"retinue.dev/proxyd/internal/http2frame"
	configv1 "retinue.dev/services/api/config/v1"
)

// Config is what sessions of one listener or one cluster do. Immutable, shared by workers.
type Config struct {
	// MaxConcurrentStreams bounds the streams that the peer may have open; for a client, what it opens itself.
	MaxConcurrentStreams uint32
	// StreamWindow and ConnectionWindow are the bytes that the peer may send ahead of those who read them.
	StreamWindow     uint32
	ConnectionWindow uint32
	// Headers bounds the header sections that the peer sends.
	Headers hpack.Limits
	// TableSize is the SETTINGS_HEADER_TABLE_SIZE that we announce.
	TableSize uint32
	// Connect tells clients that CONNECT may name a protocol (RFC 8441).
	Connect bool
	// HighWatermark is the bytes of one stream that may wait for the peer before it wants no more.
	HighWatermark int
	// Flood bounds what costs us and not the peer.
	Flood Flood
}

// Flood is the limits on frames that cost their sender nothing: Envoy's, by its names.
type Flood struct {
	OutboundFrames            uint32 // that wait to be sent
	OutboundControlFrames     uint32 // of them PING, SETTINGS, RST_STREAM
	ConsecutiveEmptyFrames    uint32 // HEADERS, CONTINUATION or DATA without payload and END_STREAM
	PriorityFramesPerStream   uint32
	WindowUpdatesPerDataFrame uint32
	Continuations             uint32 // of one header section
	// Premature resets: of PrematureResetStreams streams at least half were reset by the peer before they were answered.
	PrematureResetStreams uint32
}

// DefaultConfig has Envoy's limits. Its windows are smaller than Envoy's (16 and 24 MiB): they are what a client may have
// us keep, and 1 MiB fills a path of 80 Mbit/s and 100 ms.
var DefaultConfig = Config{
	MaxConcurrentStreams: 1024,
	StreamWindow:         1 << 20,
	ConnectionWindow:     4 << 20,
	Headers:              hpack.DefaultLimits,
	TableSize:            hpack.DefaultTableSize,
	HighWatermark:        256 << 10,
	Flood: Flood{
		OutboundFrames: 10_000, OutboundControlFrames: 1_000, ConsecutiveEmptyFrames: 1, PriorityFramesPerStream: 100,
		WindowUpdatesPerDataFrame: 10, Continuations: 512, PrematureResetStreams: 500,
	},
}

// NewConfig compiles an Http2 object; nil is the defaults.
func NewConfig(o *configv1.Http2) Config {
	c := DefaultConfig
	set := func(to *uint32, v uint32) {
		if v > 0 {
			*to = v
		}
	}
	set(&c.MaxConcurrentStreams, o.GetMaxConcurrentStreams())
	set(&c.StreamWindow, o.GetInitialStreamWindowBytes())
	set(&c.ConnectionWindow, o.GetInitialConnectionWindowBytes())
	set(&c.Flood.OutboundFrames, o.GetMaxOutboundFrames())
	set(&c.Flood.OutboundControlFrames, o.GetMaxOutboundControlFrames())
	given := func(to, v *uint32) {
		if v != nil {
			*to = *v
		}
	}
	if o != nil {
		given(&c.TableSize, o.HpackTableBytes)
		given(&c.Flood.ConsecutiveEmptyFrames, o.MaxConsecutiveEmptyFrames)
		given(&c.Flood.PriorityFramesPerStream, o.MaxPriorityFramesPerStream)
		given(&c.Flood.WindowUpdatesPerDataFrame, o.MaxWindowUpdatesPerDataFrame)
		given(&c.Flood.PrematureResetStreams, o.MaxPrematureResets)
	}
	// A window cannot be made smaller than the protocol's own before the peer has heard of it, nor greater than it has.
	c.StreamWindow = min(c.StreamWindow, http2frame.MaxWindow)
	c.ConnectionWindow = min(max(c.ConnectionWindow, http2frame.DefaultWindow), http2frame.MaxWindow)
	return c
}

// Counters are the events of sessions, counted for a listener and for a cluster alike.
type Counters [NumCounters]uint64

// What is counted. Envoy's http2.* names.
const (
	RxReset = iota
	TxReset
	RxMessagingError
	StreamRefused
	StreamsActive
	HeaderOverflow
	GoAwaySent
	GoAwayReceived
	OutboundFlood
	OutboundControlFlood
	InboundEmptyFramesFlood
	InboundPriorityFramesFlood
	InboundWindowUpdateFramesFlood
	InboundContinuationFlood
	PrematureResets
	FlowControlError
	KeepaliveTimeout
	TxFlushTimeout
	Trailers

	NumCounters
)

// CounterTexts are the names of the series, and what they count.
var CounterTexts = [NumCounters][2]string{
	RxReset:                        {"http2_rx_reset", "RST_STREAM frames received"},
	TxReset:                        {"http2_tx_reset", "RST_STREAM frames sent"},
	RxMessagingError:               {"http2_rx_messaging_error", "messages that break HTTP"},
	StreamRefused:                  {"http2_stream_refused_errors", "streams refused or opened above the limit"},
	StreamsActive:                  {"http2_streams_active", "streams open"},
	HeaderOverflow:                 {"http2_header_overflow", "header sections above the limits"},
	GoAwaySent:                     {"http2_goaway_sent", "GOAWAY frames sent"},
	GoAwayReceived:                 {"http2_goaway_received", "GOAWAY frames received"},
	OutboundFlood:                  {"http2_outbound_flood", "connections closed for frames that waited to be sent"},
	OutboundControlFlood:           {"http2_outbound_control_flood", "connections closed for PING, SETTINGS and RST_STREAM that waited to be sent"},
	InboundEmptyFramesFlood:        {"http2_inbound_empty_frames_flood", "connections closed for empty frames"},
	InboundPriorityFramesFlood:     {"http2_inbound_priority_frames_flood", "connections closed for PRIORITY frames"},
	InboundWindowUpdateFramesFlood: {"http2_inbound_window_update_frames_flood", "connections closed for WINDOW_UPDATE frames"},
	InboundContinuationFlood:       {"http2_inbound_continuation_flood", "connections closed for header sections without end"},
	PrematureResets:                {"http2_too_many_premature_resets", "connections closed for streams reset before an answer"},
	FlowControlError:               {"http2_flow_control_error", "windows that were overrun or overflowed"},
	KeepaliveTimeout:               {"http2_keepalive_timeout", "connections closed for a PING without an answer"},
	TxFlushTimeout:                 {"http2_tx_flush_timeout", "complete messages that the peer did not take in time"},
	Trailers:                       {"http2_trailers", "trailer sections received"},
}

// Errors of the connection that the session finds itself.
var (
	errPreface       = &http2frame.Error{Code: http2frame.ProtocolError, Detail: "http2.invalid_preface"}
	errFirstFrame    = &http2frame.Error{Code: http2frame.ProtocolError, Detail: "http2.settings_expected"}
	errStreamID      = &http2frame.Error{Code: http2frame.ProtocolError, Detail: "http2.invalid_stream_id"}
	errIdle          = &http2frame.Error{Code: http2frame.ProtocolError, Detail: "http2.frame_on_idle_stream"}
	errPadding       = &http2frame.Error{Code: http2frame.ProtocolError, Detail: "http2.invalid_padding"}
	errClosed        = &http2frame.Error{Code: http2frame.StreamClosed, Detail: "http2.frame_on_closed_stream"}
	errWindow        = &http2frame.Error{Code: http2frame.FlowControlError, Detail: "http2.window_overflow"}
	errOverrun       = &http2frame.Error{Code: http2frame.FlowControlError, Detail: "http2.window_exceeded"}
	errCompression   = &http2frame.Error{Code: http2frame.CompressionError, Detail: "http2.compression_error"}
	errOutbound      = &http2frame.Error{Code: http2frame.EnhanceYourCalm, Detail: "http2.outbound_frames_flood"}
	errControl       = &http2frame.Error{Code: http2frame.EnhanceYourCalm, Detail: "http2.outbound_control_flood"}
	errEmpty         = &http2frame.Error{Code: http2frame.EnhanceYourCalm, Detail: "http2.inbound_empty_frames_flood"}
	errPriority      = &http2frame.Error{Code: http2frame.EnhanceYourCalm, Detail: "http2.inbound_priority_frames_flood"}
	errUpdates       = &http2frame.Error{Code: http2frame.EnhanceYourCalm, Detail: "http2.inbound_window_update_frames_flood"}
	errContinuations = &http2frame.Error{Code: http2frame.EnhanceYourCalm, Detail: "http2.continuation_flood"}
	errResets        = &http2frame.Error{Code: http2frame.EnhanceYourCalm, Detail: "http2.too_many_premature_resets"}
)

// Details of streams that the session ends.
const (
	detailRemoteReset = "http2.remote_reset"
	detailRefused     = "http2.remote_refuse"
	detailHalfClosed  = "http2.frame_on_half_closed_stream"
	detailNoEnd       = "http2.trailers_without_end"
	detailLength      = "http2.content_length_mismatch"
	detailDependency  = "http2.stream_depends_on_itself"
	detailWindow      = "http2.window_overflow"
	detailOverrun     = "http2.window_exceeded"
	detailZeroUpdate  = "http2.zero_window_update"
	detailGoAway      = "http2.remote_goaway"
	detailNoHead      = "http2.data_before_head"
)
