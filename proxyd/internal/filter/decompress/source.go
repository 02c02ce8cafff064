package decompress

import (
	"errors"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/filter/compress"
)

// window bounds what a decoder remembers of its output, in bytes: what browsers take of zstd (RFC 8878 3.1.1.1.2).
const window = 8 << 20

// source is a body as decoders read it. Where nothing is here and more will come, it yields.
type source struct {
	chain buffer.Chain
	pool  *buffer.Pool
	ended bool // nothing comes any more
	flow  *flow
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if err := s.wait(); err != nil {
		return 0, err
	}
	n := copy(p, s.chain.Front())
	s.chain.Consume(s.pool, n)
	return n, nil
}

// ReadByte implements io.ByteReader: decoders would put a buffer before what lacks it.
func (s *source) ReadByte() (byte, error) {
	if err := s.wait(); err != nil {
		return 0, err
	}
	b := s.chain.Front()[0]
	s.chain.Consume(s.pool, 1)
	return b, nil
}

// wait returns when a byte is here, or none will be.
func (s *source) wait() error {
	for s.chain.Len() == 0 {
		switch {
		case s.ended:
			return io.EOF
		case !s.flow.wants():
			return errStopped
		}
	}
	return nil
}

// decoder is one library's, which works on the calling thread.
type decoder interface {
	io.Reader
	Reset(io.Reader) error
}

func newDecoder(c compress.Coding) (decoder, error) {
	switch c {
	case compress.Gzip:
		return new(gzip.Reader), nil
	case compress.Brotli:
		return brotli.NewReader(nil), nil
	case compress.Zstd:
		return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
	}
	return nil, errors.New("no decoder")
}
