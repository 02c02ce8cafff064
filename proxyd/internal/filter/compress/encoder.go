package compress

import (
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// encoder is one library's. All of them work on the calling thread and write into what Reset names.
type encoder interface {
	io.WriteCloser
	Flush() error
	Reset(io.Writer)
}

// sink takes what an encoder writes, until it is taken from it.
type sink struct{ b []byte }

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	s.b = append(s.b, p...)
	return len(p), nil
}

// window bounds what an encoder looks back for, and with that its memory, in bytes.
const window = 128 << 10

// newEncoder makes one. level is 1 (fastest) to 9; 0 is what costs about as much as sending the bytes saves.
func newEncoder(c Coding, level int) (encoder, error) {
	switch c {
	case Gzip:
		if level == 0 {
			level = 4
		}
		return gzip.NewWriterLevel(io.Discard, level)
	case Brotli:
		if level == 0 {
			level = 3
		}
		return brotli.NewWriterOptions(io.Discard, brotli.WriterOptions{Quality: level, LGWin: 17}), nil
	default:
		speed := zstd.SpeedFastest
		switch {
		case level > 6:
			speed = zstd.SpeedBestCompression
		case level > 3:
			speed = zstd.SpeedBetterCompression
		case level > 1:
			speed = zstd.SpeedDefault
		}
		return zstd.NewWriter(io.Discard, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	}
}
