/*
Package region owns the layout of the shared-memory stats region: its one writer (Store), the writers of cells (Sheet,
Spill) and its readers (Reader).

A value is the ledger plus the sum over the sheets that the ledger does not list. Every sheet has one writer, which
stores plainly; every other file has one writer, the region's owner (statsd), which publishes by single stores. There
is no lock that a dead process could hold.

# Files

All below one directory: RUN/region if the run directory is on tmpfs, else /dev/shm/retinue-HASH. Files are made by the
owner with O_EXCL and mode 0640, their blocks allocated before anybody is told of them, and never shrunk.

	owner            empty; byte 0 is locked by the owner
	header           262144 bytes, see below; appears by rename, whole
	catalogue-N      1 MiB each: records, append-only
	sheet-ID         65536 bytes of header (4096 used), then extents of 65536 cells, 524288 bytes each
	lock-ID          empty; byte 0 is locked (classic fcntl) by the sheet's writer for as long as it lives
	ledger-N         an immutable block
	directory        in /dev/shm only: the path of the run directory that the region belongs to
	export           totals for a region of another major: stats/v1 Export, written when the owner ends

Integers are little endian. A word is 8 bytes, alone on its cache line, written with one store.

# header

	 0  8  magic "RTNREGN1"            40  4  bytes of an entry of the segment table: 64
	 8  2  layout major: 1             44  4  entries: 4032
	10  2  layout minor: 1             48  4  cells of an extent: 65536
	12  4  0x01020304                  52  4  bytes of a catalogue segment: 1048576
	16  8  epoch, never 0              64  8  word: committed bytes of the catalogue
	24  8  created, unix ns           128  8  word: number of the ledger block in force, 0 for none
	32  4  bytes of this file         192  8  word: rises with every change of the segment table
	36  4  offset of the table: 4096  256  8  word: id of the next sheet, never used twice

An entry of the segment table:

	 0  8  word: ticket, 0 for a free entry; stored last, and no two entries ever had the same
	 8  4  kind: 1 catalogue segment, 2 sheet
	12  4  worker of a sheet, 2^32-1 for the main side
	16  8  number of the catalogue segment, id of the sheet
	24  8  generation of a sheet

# catalogue

The catalogue is the segments one behind the other. No record crosses from one to the next: a segment ends with a record
of kind 4, or with less than 16 bytes. A record:

	 0  4  length of all, a multiple of 8
	 4  2  kind: 1 schema, 2 group, 3 retirement, 4 filler, 5 other (since minor 1); unknown ones are passed over
	 6  2  0
	 8  4  length of the payload
	12  4  CRC-32C of kind (2 bytes) and payload
	16  …  payload, zeros up to the length

A string is 2 bytes of length and its bytes; labels are 1 byte of number and pairs of strings, sorted by name.

	schema       name string, 4 fields, then each field: 4 length of the rest, 1 kind (1 counter, 2 gauge, 3 histogram),
	             4 cells, name string, unit string, exposed unit string, labels, help string; more may follow in a later minor
	group        4 ordinal of the schema among the schemas, 8 base: first cell in every sheet, labels
	retirement   8 base of the group, 1 retired (1) or shown again (0)
	other        8 base of a group that comes next: it is beyond the cap and shown as a part of "__other__". A reader of
	             minor 0 shows it by its own name

A group's cells are those of its schema's fields in their order, and never cross from one extent to the next. A histogram
has 292 cells: see HistogramIndex.

# sheet

	 0  8  magic "RTNSHEE1"            40  4  worker
	 8  2  major, 10 2 minor           44  4  cells of an extent: 65536
	12  4  0x01020304                  48  8  created, unix ns
	16  8  epoch of the region         64  8  word, the owner's: extents that are allocated
	24  8  id                         128  8  word, of whoever holds the lock: 0 fresh, 1 attached, 2 dead
	32  8  generation               65536  …  cells, 8 bytes each, in extents

A sheet is attached once. It is dead when it was attached and its lock is free, or when the owner, holding the lock,
found it fresh after a minute and marked it.

# ledger

	 0  8  magic "RTNLEDG1"            24  8  number of the block
	 8  2  major, 10 2 minor           32  8  number of ids, i
	12  4  CRC-32C from offset 16 on   40  8  number of totals, t
	16  8  epoch of the region         64  16 i  ids: epoch and id of each folded sheet
	                                   64+16 i  8 t  totals, one a cell; those of gauges are 0

# How a fold is read

The owner writes block n+1 with the sum of block n and the dead sheets and with their ids, stores n+1 into the header,
frees the sheets' entries and unlinks the files. A reader takes the number, maps that block, reads the table and the
sheets that the block does not list, and looks at the number again: if it moved, it begins anew. So each sheet counts
exactly once, whenever the owner dies and whenever the reader looks.

# Two rules for readers

Readers before writers: a reader takes any minor of its major, and what it does not know it passes over (record kinds,
kinds of cells, longer fields, longer entries of the segment table). Another major is another region.

Nothing is believed: offsets and lengths are checked against the file, content by checksums, and a file that is cut off
under the reader's mapping is an error and not a fault (guard). A Reader never goes into a process that writes sheets:
closing a sheet's lock file there would let the lock go.
*/
package region
