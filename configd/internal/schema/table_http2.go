package schema

// http2Block is what a listener's clients, or a cluster's endpoints, are held to on connections of HTTP/2. Names and numbers are
// those of Envoy's http2_protocol_options, but for the windows.
func http2Block(of string) *Block {
	return &Block{
		Name: "http2",
		Doc:  "Connections of HTTP/2 " + of + ".",
		Attrs: []Attr{
			{Name: "max_concurrent_streams", Kind: Int, Default: 1024, Min: 1, Max: maxInt32, Doc: "requests at a time on one connection."},
			{Name: "initial_stream_window", Kind: Size, Default: "1MiB", Min: 65_535, Max: maxInt32, Doc: "bytes that the peer may send ahead on one stream, and so the most that is kept of it."},
			{Name: "initial_connection_window", Kind: Size, Default: "4MiB", Min: 65_535, Max: maxInt32, Doc: "the same on one connection, all its streams together."},
			{Name: "hpack_table_size", Kind: Size, Default: "4KiB", Max: 1 << 20, Doc: "the dynamic table of header compression that the peer may use."},
			{Name: "keepalive_interval", Kind: Duration, Min: 1, Max: day, ZeroOff: true, DefaultDoc: "off", Doc: "silence after which a PING asks for a sign of life."},
			{Name: "keepalive_timeout", Kind: Duration, Default: "20s", Min: 1, Max: hour, Doc: "the connection is closed when its answer does not come in this time."},
			{Name: "max_outbound_frames", Kind: Int, Default: 10_000, Min: 1, Max: maxInt32, Doc: "frames that wait for a peer that does not read."},
			{Name: "max_outbound_control_frames", Kind: Int, Default: 1000, Min: 1, Max: maxInt32, Doc: "PING, SETTINGS and RST_STREAM among them."},
			{Name: "max_consecutive_empty_frames", Kind: Int, Default: 1, Max: maxInt32, Doc: "frames in a row that carry nothing and end nothing."},
			{Name: "max_priority_frames_per_stream", Kind: Int, Default: 100, Max: maxInt32, Doc: "PRIORITY frames, for each stream opened so far and one more."},
			{Name: "max_window_updates_per_data_frame", Kind: Int, Default: 10, Min: 1, Max: maxInt32, Doc: "WINDOW_UPDATE frames for each DATA frame sent."},
			{Name: "max_premature_resets", Kind: Int, Default: 500, Max: maxInt32, Doc: "streams from which on half of them may not have been reset before they were of use; 0 is off."},
		},
	}
}
