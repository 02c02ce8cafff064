// Package buffer is the bulk memory of one worker: fixed blocks carved from mapped slabs outside the Go heap, and
// chains of them with bytes that wait to be sent or consumed.
//
// Blocks are without pointers and never move, so the kernel may write into them and the garbage collector does not see
// them. A slab that has been wholly free for a while goes back to the kernel. Everything runs on the worker's thread.
package buffer

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// BlockSize is the bytes of one block.
	BlockSize = 16 << 10
	slabSize  = 1 << 20
	perSlab   = slabSize / BlockSize
)

// Map returns n zeroed bytes of mapped memory that never move.
func Map(n int) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of buffer memory: %w", n, err)
	}
	return memory, nil
}

// block is one piece of a chain. bytes[from:to] waits.
type block struct {
	bytes    []byte
	from, to int
	next     *block
	slab     *slab
}

type slab struct {
	memory []byte // nil when it came from the heap
	blocks []block
	free   *block
	unused int // blocks on free
}

// Pool hands out blocks. One a worker.
type Pool struct {
	slabs []*slab
	open  *slab // where the last free block was seen
	used  int
}

// Used is the bytes in blocks that chains hold.
func (p *Pool) Used() int { return p.used * BlockSize }

// Mapped is the bytes of all slabs.
func (p *Pool) Mapped() int { return len(p.slabs) * slabSize }

func (p *Pool) get() *block {
	s := p.open
	if s == nil || s.free == nil {
		s = p.find()
	}
	b := s.free
	s.free = b.next
	s.unused--
	p.used++
	b.next, b.from, b.to = nil, 0, 0
	return b
}

func (p *Pool) find() *slab {
	for _, s := range p.slabs {
		if s.free != nil {
			p.open = s
			return s
		}
	}
	s := &slab{blocks: make([]block, perSlab), unused: perSlab}
	memory, err := Map(slabSize)
	if err == nil {
		s.memory = memory
	} else {
		memory = make([]byte, slabSize) // no more mappings: heap memory serves, and is the collector's to free
	}
	for i := range s.blocks {
		b := &s.blocks[i]
		b.bytes = memory[i*BlockSize : (i+1)*BlockSize : (i+1)*BlockSize]
		b.slab, b.next, s.free = s, s.free, b
	}
	p.slabs = append(p.slabs, s)
	p.open = s
	return s
}

func (p *Pool) put(b *block) {
	s := b.slab
	b.next, s.free = s.free, b
	s.unused++
	p.used--
}

// Trim gives memory back: all slabs that are wholly free but one. The worker calls it now and then.
func (p *Pool) Trim() {
	kept, spare := p.slabs[:0], false
	for _, s := range p.slabs {
		if s.unused < perSlab || !spare {
			spare = spare || s.unused == perSlab
			if s.unused == perSlab && s.memory != nil {
				_ = unix.Madvise(s.memory, unix.MADV_DONTNEED) // keeps the addresses, drops the pages
			}
			kept = append(kept, s)
			continue
		}
		if s.memory != nil {
			_ = unix.Munmap(s.memory)
		}
	}
	clear(p.slabs[len(kept):])
	p.slabs, p.open = kept, nil
}
