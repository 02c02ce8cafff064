package tlstransport

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"unsafe"
)

// crypto/tls keeps the buffer of the longest record that a connection has received, up to 18 KiB, for as long as it lives, and
// offers no way to give it back. The field is reached by reflection, once, and only if it still is what it was: with another
// version of crypto/tls idle connections are larger and nothing else changes.

// keptBuffer is what an idle connection may keep.
const keptBuffer = 1 << 10

var rawInput, input, hand = field[bytes.Buffer]("rawInput"), field[bytes.Reader]("input"), field[bytes.Buffer]("hand")

func field[T any](name string) uintptr {
	f, ok := reflect.TypeFor[tls.Conn]().FieldByName(name)
	if !ok || f.Type != reflect.TypeFor[T]() {
		return 0
	}
	return f.Offset
}

func at[T any](c *tls.Conn, offset uintptr) *T { return (*T)(unsafe.Add(unsafe.Pointer(c), offset)) }

// bufferSize is what a connection's read buffer holds of memory.
func bufferSize(c *tls.Conn) int {
	if rawInput == 0 || input == 0 || hand == 0 {
		return 0
	}
	return at[bytes.Buffer](c, rawInput).Cap()
}

// dropBuffer gives the buffers back when nothing is in them. Between two calls of Read on the connection's own thread nothing
// else looks at them. Only after bufferSize has said that they are there.
func dropBuffer(c *tls.Conn) {
	raw, plain, messages := at[bytes.Buffer](c, rawInput), at[bytes.Reader](c, input), at[bytes.Buffer](c, hand)
	if raw.Len() == 0 && plain.Len() == 0 && messages.Len() == 0 {
		*raw, *plain, *messages = bytes.Buffer{}, bytes.Reader{}, bytes.Buffer{}
	}
}
