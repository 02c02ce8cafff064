// Package http2 is one HTTP/2 connection (RFC 9113) as a state machine over bytes, for either role: frames, settings, flow
// control, the states of streams, and what is done against a peer that floods. It has no socket, no clock and no goroutine.
//
// A codec owns a Session, feeds it what the socket gave and stages what it writes; the session tells it of messages by
// Handler. Header sections pass through as bytes: the codec decodes them by the session's Decoder into the memory of its
// stream, each exactly once and in order, since HPACK has one state for a connection.
//
// Framing: 9 bytes of head, then the payload. DATA is passed on in the pieces that come; every other frame is waited for
// whole, which a frame of at most 16 KiB allows. The client starts with the preface, both sides with SETTINGS. A fault of
// one stream ends in RST_STREAM and leaves the rest alone; a fault of the connection ends in GOAWAY, and nothing that comes
// afterwards is read.
//
// Flow control ties both directions to what is behind them. Bytes that the peer sent are credited to it (WINDOW_UPDATE, when
// half a window has gathered) only while their stream is not paused: a stream holds at most its window, a connection
// at most its own. Bytes for the peer that no window has room for wait in the stream, which says above its high mark that it
// wants no more.
package http2
