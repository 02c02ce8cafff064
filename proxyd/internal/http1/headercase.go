package http1

import "bytes"

// maxHeaderCase is the longest name whose spelling can be told.
const maxHeaderCase = 64

// HeaderCase spells names of headers as a peer wants them that compares names letter by letter, against RFC 9110 section 5.1. A nil
// one leaves all names as they are.
type HeaderCase struct {
	spelling map[string]string // by the lower-case name
}

// NewHeaderCase makes one of the spellings, nil of none. Names above 64 bytes never match.
func NewHeaderCase(names []string) *HeaderCase {
	if len(names) == 0 {
		return nil
	}
	h := &HeaderCase{spelling: make(map[string]string, len(names))}
	for _, name := range names {
		h.spelling[string(bytes.ToLower([]byte(name)))] = name
	}
	return h
}

// Apply spells the names in a head that was just written, or in the trailers behind a last chunk, in place: a spelling has the length of
// its name. The first line is left alone.
func (h *HeaderCase) Apply(head []byte) {
	if h == nil {
		return
	}
	at := bytes.IndexByte(head, '\n') + 1
	for at < len(head) {
		line := head[at:]
		end := bytes.IndexByte(line, '\n')
		if end < 0 {
			return
		}
		at += end + 1
		colon := bytes.IndexByte(line[:end], ':')
		if colon <= 0 || colon > maxHeaderCase {
			continue
		}
		var lower [maxHeaderCase]byte
		for i, b := range line[:colon] {
			if b >= 'A' && b <= 'Z' {
				b += 'a' - 'A'
			}
			lower[i] = b
		}
		if spelling, ok := h.spelling[string(lower[:colon])]; ok {
			copy(line, spelling)
		}
	}
}
