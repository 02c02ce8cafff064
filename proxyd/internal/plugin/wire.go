package plugin

import (
	"encoding/binary"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// Frames are written and read by hand: the shapes are filter/v1's, the memory is ours. A nested message's length is written as
// four bytes of varint, padded, so that it can be filled in afterwards.
const (
	headBytes = 4
	// maxFrame bounds what a plugin may send in one frame: a whole body and some heads.
	maxFrame = maxBuffer + 128<<10
	// maxOps and maxDetail bound one answer.
	maxOps    = 128
	maxDetail = 64

	fieldOpening = 1
	fieldMessage = 2 // event of ToPlugin, reply of FromPlugin
	fieldHandled = 120
)

var errFrame = errors.New("a frame that does not parse")

func varint(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func raw(b []byte, n protowire.Number, p []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), p)
}

// begin appends the tag of a nested message and room for its length; finish fills it in.
func begin(b []byte, n protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	return append(b, 0, 0, 0, 0), len(b)
}

func finish(b []byte, at int) {
	size := len(b) - at - 4
	b[at] = byte(size) | 0x80
	b[at+1] = byte(size>>7) | 0x80
	b[at+2] = byte(size>>14) | 0x80
	b[at+3] = byte(size>>21) & 0x7f
}

// pair appends a Header message.
func pair(b []byte, n protowire.Number, name, value []byte) []byte {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	size := protowire.SizeTag(1) + protowire.SizeBytes(len(name)) + protowire.SizeTag(2) + protowire.SizeBytes(len(value))
	b = protowire.AppendVarint(b, uint64(size))
	return raw(raw(b, 1, name), 2, value)
}

// opening is the first frame on a channel.
func opening(generation uint64, worker int) []byte {
	b := make([]byte, headBytes, 64)
	b, at := begin(b, fieldOpening)
	b = varint(varint(varint(varint(b, 1, 1), 3, generation), 4, uint64(worker)), 5, maxFrame)
	finish(b, at)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-headBytes))
	return b
}

// op is one header operation of a reply.
type op struct {
	kind        filterv1.Op
	name, value []byte
}

// reply is one answer. Its slices lie in the frame.
type reply struct {
	call     uint64
	action   filterv1.Action
	ops      []op
	body     []byte
	replaced bool
	status   int
	respond  []op // headers of the response
	text     []byte
	modes    [2]filterv1.BodyMode
	moded    [2]bool
	ttl      uint32
	detail   []byte
	inject   []byte
	handled  uint32 // ns that the plugin worked on it
	worked   bool   // it says so
}

// parse reads a FromPlugin that holds a Reply; opening tells that it holds an Opening instead.
func (r *reply) parse(b []byte) (opening bool, err error) {
	*r = reply{ops: r.ops[:0], respond: r.respond[:0]}
	seen := false
	for len(b) > 0 {
		n, _, p, rest, ok := next(b)
		if !ok {
			return false, errFrame
		}
		b = rest
		switch n {
		case fieldOpening:
			opening = true
		case fieldMessage:
			if seen {
				return false, errFrame
			}
			seen = true
			if err := r.message(p); err != nil {
				return false, err
			}
		default:
			return false, errFrame
		}
	}
	if seen == opening {
		return false, errFrame
	}
	return opening, nil
}

// next takes one field: v for a varint, p for bytes.
func next(b []byte) (n protowire.Number, v uint64, p, rest []byte, ok bool) {
	n, t, k := protowire.ConsumeTag(b)
	if k < 0 {
		return 0, 0, nil, nil, false
	}
	b = b[k:]
	switch t {
	case protowire.VarintType:
		v, k = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		p, k = protowire.ConsumeBytes(b)
		if k >= 0 && p == nil {
			p = b[:0]
		}
	case protowire.Fixed32Type, protowire.Fixed64Type:
		k = protowire.ConsumeFieldValue(n, t, b) // of a newer protocol
	default:
		return 0, 0, nil, nil, false
	}
	if k < 0 {
		return 0, 0, nil, nil, false
	}
	return n, v, p, b[k:], true
}

func (r *reply) message(b []byte) error {
	for len(b) > 0 {
		n, v, p, rest, ok := next(b)
		if !ok {
			return errFrame
		}
		b = rest
		switch n {
		case 1:
			r.call = v
		case 2:
			if v > 1<<30 {
				return errFrame
			}
			r.action = filterv1.Action(v)
		case 3:
			if len(r.ops) == maxOps {
				return errFrame
			}
			var o op
			if err := o.parse(p, 1, 2, 3); err != nil {
				return err
			}
			r.ops = append(r.ops, o)
		case 4:
			r.body, r.replaced = p, true
		case 5:
			if err := r.response(p); err != nil {
				return err
			}
		case 6, 7:
			if v > uint64(filterv1.BodyMode_BODY_BUFFER) {
				return errFrame
			}
			r.modes[n-6], r.moded[n-6] = filterv1.BodyMode(v), true
		case 8:
			r.ttl = uint32(min(v, 1<<31))
		case 9:
			r.detail = p[:min(len(p), maxDetail)]
		case 10:
			r.inject = p
		case fieldHandled:
			r.handled, r.worked = uint32(min(v, 1<<32-1)), true
		}
	}
	return nil
}

// parse reads a HeaderOp, or with kind 0 a Header.
func (o *op) parse(b []byte, kind, name, value protowire.Number) error {
	for len(b) > 0 {
		n, v, p, rest, ok := next(b)
		if !ok {
			return errFrame
		}
		b = rest
		switch n {
		case kind:
			if kind != 0 {
				if v > uint64(filterv1.Op_OP_REMOVE) {
					return errFrame
				}
				o.kind = filterv1.Op(v)
			}
		case name:
			o.name = p
		case value:
			o.value = p
		}
	}
	return nil
}

func (r *reply) response(b []byte) error {
	for len(b) > 0 {
		n, v, p, rest, ok := next(b)
		if !ok {
			return errFrame
		}
		b = rest
		switch n {
		case 1:
			r.status = int(min(v, 1000))
		case 2:
			if len(r.respond) == maxOps {
				return errFrame
			}
			o := op{kind: filterv1.Op_OP_ADD}
			if err := o.parse(p, 0, 1, 2); err != nil {
				return err
			}
			r.respond = append(r.respond, o)
		case 3:
			r.text = p
		}
	}
	return nil
}
