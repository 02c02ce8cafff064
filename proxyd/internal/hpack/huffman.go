package hpack

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"

	xhpack "golang.org/x/net/http2/hpack"
)

// The Huffman code of RFC 7541 appendix B. Its code words come from golang.org/x/net, whose own decoder is a tree
// behind a pool and an io.Writer: this one reads twelve bits, often two symbols, at a time out of a word. The code is canonical (code words
// of one length are consecutive, longer ones greater), which is what the search for long words rests on; a test
// checks it.
const (
	fastBits    = 12
	maxCodeBits = 30
)

var (
	huffCodes, huffBits = codeWords()
	huffFast            = fastTable()
	huffLong            = longTable()
)

// codeWords takes a symbol's word from the encoding of eight of them: as many bytes as the word has bits.
func codeWords() (codes [256]uint32, lengths [256]uint8) {
	for c := range 256 {
		encoded := xhpack.AppendHuffmanString(nil, strings.Repeat(string([]byte{byte(c)}), 8))
		lengths[c] = uint8(len(encoded))
		var first [8]byte
		copy(first[:], encoded)
		codes[c] = uint32(binary.BigEndian.Uint64(first[:]) >> (64 - len(encoded)))
	}
	return codes, lengths
}

// fastTable maps the next twelve bits to the symbols whose words they begin with, two where two fit: the symbols, the
// bits of both (from bit 16), the bits of the first (20), how many there are (24). 0 when the first word is longer.
func fastTable() (t [1 << fastBits]uint32) {
	for c := range 256 {
		n := huffBits[c]
		if n > fastBits {
			continue
		}
		first := huffCodes[c] << (fastBits - n)
		for i := range uint32(1) << (fastBits - n) {
			t[first+i] = uint32(c) | uint32(n)<<16 | uint32(n)<<20 | 1<<24
		}
	}
	single := t
	for i, e := range single {
		n := e >> 20 & 15
		if e == 0 {
			continue
		}
		// What follows the first word, with zeros behind: a word that fits needs none of them.
		next := single[uint32(i)<<n&(1<<fastBits-1)]
		if m := next >> 20 & 15; next != 0 && n+m <= fastBits {
			t[i] = e&0xff | next&0xff<<8 | (n+m)<<16 | n<<20 | 2<<24
		}
	}
	return t
}

type longWords struct {
	symbols []byte // of words longer than fastBits, in order of words
	// For words of one length: one more than the greatest, left-aligned in 32 bits; the least; where its symbol is.
	limit [maxCodeBits + 1]uint64
	first [maxCodeBits + 1]uint32
	start [maxCodeBits + 1]int
}

func longTable() (t longWords) {
	for c := range 256 {
		if huffBits[c] > fastBits {
			t.symbols = append(t.symbols, byte(c))
		}
	}
	slices.SortFunc(t.symbols, func(a, b byte) int {
		return cmp.Or(cmp.Compare(huffBits[a], huffBits[b]), cmp.Compare(huffCodes[a], huffCodes[b]))
	})
	for i, c := range t.symbols {
		n := huffBits[c]
		if t.limit[n] == 0 {
			t.first[n], t.start[n] = huffCodes[c], i
		}
		t.limit[n] = uint64(huffCodes[c]+1) << (32 - n)
	}
	return t
}

// appendHuffmanDecoded appends what in encodes; false when in is no Huffman string: a padding of more than seven bits
// or of anything but ones, or EOS (RFC 7541 5.2).
func appendHuffmanDecoded(dst, in []byte) ([]byte, bool) {
	dst = slices.Grow(dst, len(in)*8/5+2) // one more than symbols: two are written at a time
	out := dst[len(dst):cap(dst)]
	w := 0
	var acc uint64 // the next n bits, at the top
	n := 0
	for i := 0; ; {
		if i+8 <= len(in) {
			acc |= binary.BigEndian.Uint64(in[i:]) >> n
			k := (63 - n) >> 3
			i += k
			n += k << 3
		} else {
			for n <= 56 && i < len(in) {
				acc |= uint64(in[i]) << (56 - n)
				n += 8
				i++
			}
		}
		for n >= fastBits {
			e := huffFast[acc>>(64-fastBits)]
			if e == 0 {
				symbol, bits := longWord(acc)
				if bits > n {
					break
				}
				out[w] = symbol
				w++
				acc <<= bits
				n -= bits
				continue
			}
			out[w], out[w+1] = byte(e), byte(e>>8)
			w += int(e >> 24)
			bits := e >> 16 & 15
			acc <<= bits
			n -= int(bits)
		}
		if i < len(in) {
			if n >= maxCodeBits {
				return dst, false // EOS
			}
			continue
		}
		for n > 0 {
			e := huffFast[acc>>(64-fastBits)]
			bits := int(e >> 20 & 15)
			if e == 0 || bits > n {
				break
			}
			out[w] = byte(e)
			w++
			acc <<= bits
			n -= bits
		}
		if n < 8 && (n == 0 || acc>>(64-n) == 1<<n-1) {
			return dst[:len(dst)+w], true
		}
		return dst, false
	}
}

// longWord decodes a word longer than fastBits at the top of acc. EOS and beginnings of it have 64 bits.
func longWord(acc uint64) (symbol byte, bits int) {
	top := acc >> 32
	for bits = fastBits + 1; bits <= maxCodeBits; bits++ {
		if top < huffLong.limit[bits] {
			return huffLong.symbols[huffLong.start[bits]+int(uint32(top>>(32-bits))-huffLong.first[bits])], bits
		}
	}
	return 0, 64
}

// huffmanLen is the length of s when encoded.
func huffmanLen(s []byte) int {
	n := 0
	for _, c := range s {
		n += int(huffBits[c])
	}
	return (n + 7) >> 3
}

func appendHuffman(dst, s []byte) []byte {
	var acc uint64 // the last n bits, at the bottom
	n := 0
	for _, c := range s {
		acc = acc<<huffBits[c] | uint64(huffCodes[c])
		n += int(huffBits[c])
		if n >= 32 {
			n -= 32
			dst = binary.BigEndian.AppendUint32(dst, uint32(acc>>n))
		}
	}
	for n >= 8 {
		n -= 8
		dst = append(dst, byte(acc>>n))
	}
	if n > 0 {
		dst = append(dst, byte(acc<<(8-n))|byte(0xff>>n))
	}
	return dst
}
