package region

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// The layout. Every integer is little endian and naturally aligned; a word that a reader may see change is 64 bits,
// alone on its cache line, and is written with one store. doc.go has the same tables in prose.
const (
	LayoutMajor = 1 // another major is another region: nothing is shared but the magic
	LayoutMinor = 1 // a higher minor only adds what an older reader may pass over

	magicHeader = "RTNREGN1"
	magicSheet  = "RTNSHEE1"
	magicLedger = "RTNLEDG1"

	byteOrderMark = 0x01020304

	// ExtentCells is the number of cells of an extent; no group crosses from one to the next.
	ExtentCells = 64 << 10
	extentBytes = ExtentCells * 8

	// CatalogueSegmentBytes is the size of a catalogue segment; no record crosses from one to the next.
	CatalogueSegmentBytes = 1 << 20

	headerBytes     = 256 << 10
	tableOffset     = 4096
	tableEntryBytes = 64
	tableEntries    = (headerBytes - tableOffset) / tableEntryBytes

	// sheetHeaderBytes is the offset of a sheet's first extent: a multiple of every page size in use (64 KiB on some
	// arm64), of which only the first 4 KiB are allocated.
	sheetHeaderBytes = 64 << 10
	sheetHeaderUsed  = 4096

	ledgerHeaderBytes = 64
	ledgerIDBytes     = 16
)

// Offsets in the file `header`.
const (
	hMagic          = 0
	hMajor          = 8   // uint16
	hMinor          = 10  // uint16
	hByteOrder      = 12  // uint32
	hEpoch          = 16  // identity of the region, never 0
	hCreated        = 24  // unix nanoseconds
	hBytes          = 32  // uint32, size of this file
	hTableOffset    = 36  // uint32
	hTableEntry     = 40  // uint32
	hTableEntries   = 44  // uint32
	hExtentCells    = 48  // uint32
	hCatalogueBytes = 52  // uint32, size of a catalogue segment
	hCatalogue      = 64  // word: committed length of the catalogue
	hLedger         = 128 // word: sequence number of the ledger block in force, 0 for none
	hTable          = 192 // word: rises with every change of the segment table
	hNextSheet      = 256 // word: id of the next sheet; an id is never used twice
)

// Offsets in an entry of the segment table.
const (
	eTicket     = 0  // word: 0 free; else a number no other entry ever had, stored last
	eKind       = 8  // uint32: segmentCatalogue or segmentSheet
	eWorker     = 12 // uint32: of a sheet
	eID         = 16 // uint64: number of the catalogue segment, id of the sheet
	eGeneration = 24 // uint64: of a sheet
)

const (
	segmentCatalogue = 1
	segmentSheet     = 2
)

// Offsets in the file of a sheet.
const (
	sMagic      = 0
	sMajor      = 8
	sMinor      = 10
	sByteOrder  = 12
	sEpoch      = 16
	sID         = 24
	sGeneration = 32
	sWorker     = 40  // uint32
	sExtentCell = 44  // uint32
	sCreated    = 48  // unix nanoseconds
	sExtents    = 64  // word, statsd's: extents that are allocated
	sState      = 128 // word, of whoever holds the lock: sheetFresh, sheetAttached or sheetDead
)

const (
	sheetFresh    = 0 // created, its writer has not come yet
	sheetAttached = 1 // its writer came; it is dead when nobody holds the lock
	sheetDead     = 2 // its writer is dead, or may not come any more
)

// Offsets in the file of a ledger block; then the ids of the folded sheets, then the totals.
const (
	lMagic    = 0
	lMajor    = 8
	lMinor    = 10
	lChecksum = 12 // uint32, CRC-32C of everything behind it
	lEpoch    = 16
	lSequence = 24
	lIDs      = 32 // number of {epoch, sheet id} pairs
	lCells    = 40 // number of totals
)

// NoCell stands for the base of a group that was refused: its values are not kept.
const NoCell = ^uint64(0)

// MainWorker is the worker number of a process's main side, which has a sheet of its own.
const MainWorker = ^uint32(0)

// ErrLayout marks content that is not a region of this layout: torn, truncated, hostile or of another major.
var ErrLayout = errors.New("not a stats region that this version can read")

func load(m []byte, offset int) uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&m[offset : offset+8][0])))
}

func store(m []byte, offset int, v uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&m[offset : offset+8][0])), v)
}

// cellsOf views mapped bytes as cells. m comes from mmap, which aligns it.
func cellsOf(m []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(m))), len(m)/8)
}

func putPreamble(m []byte, magic string) {
	copy(m, magic)
	binary.LittleEndian.PutUint16(m[hMajor:], LayoutMajor)
	binary.LittleEndian.PutUint16(m[hMinor:], LayoutMinor)
}

// checkPreamble refuses what is not of this layout. Magic, major and minor are at the same place in every file.
func checkPreamble(m []byte, magic, file string) error {
	if len(m) < hByteOrder || string(m[:8]) != magic {
		return fmt.Errorf("%s: %w: it does not begin with %q", file, ErrLayout, magic)
	}
	if major := binary.LittleEndian.Uint16(m[hMajor:]); major != LayoutMajor {
		return fmt.Errorf("%s: %w: its layout is %d.%d, this version reads %d.x; use the tools of the statsd that wrote it",
			file, ErrLayout, major, binary.LittleEndian.Uint16(m[hMinor:]), LayoutMajor)
	}
	return nil
}
