package http2frame

import "encoding/binary"

// AppendHeader appends the head of a frame.
func AppendHeader(dst []byte, h Header) []byte {
	dst = append(dst, byte(h.Length>>16), byte(h.Length>>8), byte(h.Length), byte(h.Type), byte(h.Flags))
	return binary.BigEndian.AppendUint32(dst, h.StreamID)
}

// PutHeader writes the head of a frame over the first HeaderLen bytes of p, which were left free for it.
func PutHeader(p []byte, h Header) {
	binary.BigEndian.PutUint32(p, h.Length<<8|uint32(h.Type))
	p[4] = byte(h.Flags)
	binary.BigEndian.PutUint32(p[5:], h.StreamID)
}

// BeginHeaders leaves room in front of a header block that is appended next; EndHeaderBlock with the same offset
// makes frames of it.
func BeginHeaders(dst []byte) (_ []byte, at int) {
	return append(dst, make([]byte, HeaderLen)...), len(dst)
}

// EndHeaderBlock makes a HEADERS frame of what was appended since BeginHeaders, and as many CONTINUATION frames as the
// peer's maxSize asks for.
func EndHeaderBlock(dst []byte, at int, stream uint32, endStream bool, maxSize int) []byte {
	size := len(dst) - at - HeaderLen
	head := Header{Length: uint32(min(size, maxSize)), Type: Headers, StreamID: stream}
	if endStream {
		head.Flags = EndStream
	}
	if size <= maxSize {
		head.Flags |= EndHeaders
		PutHeader(dst[at:], head)
		return dst
	}
	PutHeader(dst[at:], head)
	// Each further frame moves what is behind its head: from the last one to the first, so that a byte moves once.
	more := (size - 1) / maxSize
	end := len(dst)
	dst = append(dst, make([]byte, more*HeaderLen)...)
	for i := more; i > 0; i-- {
		from := at + HeaderLen + i*maxSize
		to := from + i*HeaderLen
		copy(dst[to:], dst[from:end])
		head = Header{Length: uint32(end - from), Type: Continuation, StreamID: stream}
		if i == more {
			head.Flags = EndHeaders
		}
		PutHeader(dst[to-HeaderLen:], head)
		end = from
	}
	return dst
}

// AppendSettings appends a SETTINGS frame.
func AppendSettings(dst []byte, settings ...Setting) []byte {
	dst = AppendHeader(dst, Header{Length: uint32(len(settings) * settingLen), Type: Settings})
	for _, s := range settings {
		dst = binary.BigEndian.AppendUint16(dst, uint16(s.ID))
		dst = binary.BigEndian.AppendUint32(dst, s.Value)
	}
	return dst
}

// AppendSettingsAck appends the acknowledgement of the peer's settings.
func AppendSettingsAck(dst []byte) []byte {
	return AppendHeader(dst, Header{Type: Settings, Flags: Ack})
}

// AppendPing appends a PING frame; ack answers the peer's.
func AppendPing(dst []byte, ack bool, data [8]byte) []byte {
	h := Header{Length: 8, Type: Ping}
	if ack {
		h.Flags = Ack
	}
	return append(AppendHeader(dst, h), data[:]...)
}

// AppendGoAway appends a GOAWAY frame.
func AppendGoAway(dst []byte, lastStream uint32, code ErrCode, debug string) []byte {
	dst = AppendHeader(dst, Header{Length: uint32(8 + len(debug)), Type: GoAway})
	dst = binary.BigEndian.AppendUint32(dst, lastStream)
	dst = binary.BigEndian.AppendUint32(dst, uint32(code))
	return append(dst, debug...)
}

// AppendRSTStream appends a RST_STREAM frame.
func AppendRSTStream(dst []byte, stream uint32, code ErrCode) []byte {
	dst = AppendHeader(dst, Header{Length: 4, Type: RSTStream, StreamID: stream})
	return binary.BigEndian.AppendUint32(dst, uint32(code))
}

// AppendWindowUpdate appends a WINDOW_UPDATE frame; stream 0 is the connection.
func AppendWindowUpdate(dst []byte, stream, increment uint32) []byte {
	dst = AppendHeader(dst, Header{Length: 4, Type: WindowUpdate, StreamID: stream})
	return binary.BigEndian.AppendUint32(dst, increment)
}

// AppendDataHeader appends the head of a DATA frame; n bytes of data follow.
func AppendDataHeader(dst []byte, stream uint32, n int, endStream bool) []byte {
	h := Header{Length: uint32(n), Type: Data, StreamID: stream}
	if endStream {
		h.Flags = EndStream
	}
	return AppendHeader(dst, h)
}
