package pluginsdk

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// maxFrame is what we take in one frame: a whole body of BODY_BUFFER with its headers.
const maxFrame = 4 << 20

// event is one Event. Its slices lie in the frame that it was read from.
type event struct {
	call, stream uint64
	config       uint32
	phase        filterv1.Phase
	end          bool
	deadline     uint32 // µs
	headers      []field
	attributes   []field
	body         []byte
}

type field struct{ name, value []byte }

var errFrame = errors.New("a frame does not parse")

// next takes one field of a message: v for a varint, p for bytes.
func next(b []byte) (n protowire.Number, v uint64, p, rest []byte, err error) {
	n, t, k := protowire.ConsumeTag(b)
	if k < 0 {
		return 0, 0, nil, nil, errFrame
	}
	b = b[k:]
	switch t {
	case protowire.VarintType:
		v, k = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		p, k = protowire.ConsumeBytes(b)
	default:
		k = protowire.ConsumeFieldValue(n, t, b)
	}
	if k < 0 {
		return 0, 0, nil, nil, errFrame
	}
	return n, v, p, b[k:], nil
}

// parse reads an Event, keeping the memory of e's lists.
func (e *event) parse(b []byte) error {
	*e = event{headers: e.headers[:0], attributes: e.attributes[:0]}
	for len(b) > 0 {
		n, v, p, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		switch n {
		case 1:
			e.call = v
		case 2:
			e.stream = v
		case 3:
			e.config = uint32(v)
		case 4:
			e.phase = filterv1.Phase(v)
		case 5:
			e.end = v != 0
		case 6:
			e.deadline = uint32(v)
		case 7, 8:
			f, err := parseField(p)
			if err != nil {
				return err
			}
			if n == 7 {
				e.headers = append(e.headers, f)
			} else {
				e.attributes = append(e.attributes, f)
			}
		case 9:
			e.body = p
		}
	}
	return nil
}

func parseField(b []byte) (f field, err error) {
	for len(b) > 0 {
		n, _, p, rest, err := next(b)
		if err != nil {
			return f, err
		}
		b = rest
		switch n {
		case 1:
			f.name = p
		case 2:
			f.value = p
		}
	}
	return f, nil
}

func varint(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func str(b []byte, n protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
}

func raw(b []byte, n protowire.Number, p []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), p)
}

// begin appends the tag of a nested message and room for its length, four bytes of padded varint, which finish fills in: nothing is moved.
func begin(b []byte, n protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	return append(b, 0, 0, 0, 0), len(b)
}

func finish(b []byte, at int) {
	size := len(b) - at - 4
	for i := range 4 {
		b[at+i] = byte(size>>(7*i))&0x7f | 0x80
	}
	b[at+3] &= 0x7f
}

// appendReply appends the frame that answers a call, which took a while.
func (a *Answer) appendReply(b []byte, call uint64, took time.Duration) []byte {
	start := len(b)
	b, at := begin(append(b, 0, 0, 0, 0), fieldReply)
	b = varint(b, 1, call)
	if a.action != 0 {
		b = varint(b, 2, uint64(a.action))
	}
	if a.action == filterv1.Action_ACTION_RESPOND {
		var response int
		b, response = begin(b, 5)
		b = varint(b, 1, uint64(a.status))
		for i := range a.ops {
			o := &a.ops[i]
			var header int
			b, header = begin(b, 2)
			b = str(str(b, 1, o.name), 2, o.value)
			finish(b, header)
		}
		b = raw(b, 3, a.body)
		finish(b, response)
	} else {
		for i := range a.ops {
			o := &a.ops[i]
			var header int
			b, header = begin(b, 3)
			b = str(str(varint(b, 1, uint64(o.kind)), 2, o.name), 3, o.value)
			finish(b, header)
		}
		if a.replaced {
			b = raw(b, 4, a.body)
		}
	}
	if a.modes {
		b = varint(varint(b, 6, uint64(a.request)), 7, uint64(a.response))
	}
	if a.ttl > 0 {
		b = varint(b, 8, uint64(a.ttl))
	}
	if a.detail != "" {
		b = str(b, 9, a.detail)
	}
	if len(a.inject) > 0 {
		b = raw(b, 10, a.inject)
	}
	b = varint(b, 120, uint64(min(took, math.MaxUint32)))
	finish(b, at)
	binary.LittleEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}
