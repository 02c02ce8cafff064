package compile

import (
	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// http2 compiles the http2 block of a listener or a cluster; nil without one, which is the defaults.
func (c *compiler) http2(n *schema.Node) *configv1.Http2 {
	if n == nil {
		return nil
	}
	if n.Int("initial_connection_window") < n.Int("initial_stream_window") {
		c.diags.Report(diag.InvalidValue, n.DefRange, "Window of a stream above its connection's", "initial_stream_window is more than initial_connection_window: no stream could ever fill it.")
	}
	number := func(name string) *uint32 { return proto.Uint32(uint32(n.Int(name))) }
	return &configv1.Http2{
		MaxConcurrentStreams:         uint32(n.Int("max_concurrent_streams")),
		InitialStreamWindowBytes:     uint32(n.Int("initial_stream_window")),
		InitialConnectionWindowBytes: uint32(n.Int("initial_connection_window")),
		HpackTableBytes:              number("hpack_table_size"),
		KeepaliveIntervalMs:          n.Int("keepalive_interval"),
		KeepaliveTimeoutMs:           n.Int("keepalive_timeout"),
		MaxOutboundFrames:            uint32(n.Int("max_outbound_frames")),
		MaxOutboundControlFrames:     uint32(n.Int("max_outbound_control_frames")),
		MaxConsecutiveEmptyFrames:    number("max_consecutive_empty_frames"),
		MaxPriorityFramesPerStream:   number("max_priority_frames_per_stream"),
		MaxWindowUpdatesPerDataFrame: number("max_window_updates_per_data_frame"),
		MaxPrematureResets:           number("max_premature_resets"),
	}
}
