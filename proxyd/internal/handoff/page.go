package handoff

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/parcel"
)

const (
	// pageSize is what is shared of the memfd.
	pageSize = 4096
	// bitmap is where a bit for each connection begins that the taker does not want.
	bitmap = 8
	// maxConnections is what a batch has at most: each has a descriptor at least.
	maxConnections = parcel.MaxFDs
)

// The states of the batch in the page, in the word's low two bits. The rest is the batch's number.
const (
	offered uint64 = iota + 1
	accepted
	withdrawn
)

// page is the word that decides who has a batch.
type page struct {
	memory []byte
	fd     int // of the giver
}

// newPage makes a sealed page: whoever maps it is safe from a peer that shrinks it.
func newPage() (*page, error) {
	fd, err := unix.MemfdCreate("retinue-handoff", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	if err = unix.Ftruncate(fd, pageSize); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	var p *page
	if err == nil {
		p, err = mapPage(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	p.fd = fd
	return p, nil
}

const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// mapPage maps a page that came from a giver. The descriptor stays the caller's.
func mapPage(fd int) (*page, error) {
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("seals of the page: %w", err)
	}
	if have&unix.F_SEAL_SHRINK == 0 {
		return nil, errors.New("the page may shrink: it is not sealed")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size < pageSize {
		return nil, fmt.Errorf("the page has %d bytes", st.Size)
	}
	memory, err := unix.Mmap(fd, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the page: %w", err)
	}
	return &page{memory: memory, fd: -1}, nil
}

func (p *page) word() *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&p.memory[0])) }

func (p *page) offer(batch uint64) {
	clear(p.memory[bitmap : bitmap+(maxConnections+7)/8])
	p.word().Store(batch<<2 | offered)
}

// decide turns an offer of the batch into another state; false when it is in one already.
func (p *page) decide(batch, state uint64) bool {
	return p.word().CompareAndSwap(batch<<2|offered, batch<<2|state)
}

// refuse notes that the taker does not want connection i of the batch; before the decision to accept.
func (p *page) refuse(i int) { p.memory[bitmap+i/8] |= 1 << (i % 8) }

// refused tells what the taker noted.
func (p *page) refused(i int) bool { return p.memory[bitmap+i/8]>>(i%8)&1 != 0 }

func (p *page) close() {
	_ = unix.Munmap(p.memory)
	p.memory = nil
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
}
