package region

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf8"

	statsv1 "retinue.dev/services/api/stats/v1"
)

// Kind says how cells of a field are read and merged.
type Kind uint8

// The kinds; their numbers are part of the layout.
const (
	Counter   Kind = 1 // 1 cell, only rises
	Gauge     Kind = 2 // 1 cell, two's complement; dies with its writer
	Histogram Kind = 3 // HistogramCells cells
)

func (k Kind) cells() int {
	if k == Histogram {
		return HistogramCells
	}
	return 1
}

// Limits of what can be declared.
const (
	MaxFields     = 4096
	MaxLabels     = 16
	MaxNameBytes  = 200
	MaxValueBytes = 4096
	maxHelpBytes  = 1024
)

// Label is one name and value.
type Label struct{ Name, Value string }

// Field is one series of a schema. Cell and Cells are its place among the cells of a group; a kind that this version
// does not know has its cells and is passed over.
type Field struct {
	Name    string
	Kind    Kind
	Unit    string // of the cells: "" UnitTicks "us" "ms" "bytes"
	Exposed string // unit of the exposition: "" as stored; "ms" for a field stored in ticks
	Labels  []Label
	Help    string
	Cell    int
	Cells   int
}

// Schema is a fixed list of fields, identified by its whole content. It is immutable once declared.
type Schema struct {
	Name   string
	Fields []Field
	Cells  int    // of one group
	key    string // its payload in the catalogue
	id     string // a hash of it, for the keys of its groups
}

// Group is one instance of a schema: contiguous cells at the same base in every sheet. Labels are sorted by name.
type Group struct {
	Schema  *Schema
	Labels  []Label
	Base    uint64
	Retired bool // no live snapshot names it: it is neither shown nor counted to the cap, its cells stay
	Other   bool // beyond the cap on series of one name: it is shown as a part of the series whose labels are OtherValue
	key     string
}

// SchemaOf checks a schema as a peer declared it and returns it in the region's form.
func SchemaOf(p *statsv1.Schema) (*Schema, error) {
	s := &Schema{Name: p.GetName()}
	if !validName(s.Name) {
		return nil, fmt.Errorf("schema %.40q: a name is a lower-case word of letters, digits and '_', of at most %d bytes", s.Name, MaxNameBytes)
	}
	if n := len(p.GetFields()); n == 0 || n > MaxFields {
		return nil, fmt.Errorf("schema %q has %d fields: 1 to %d are possible", s.Name, n, MaxFields)
	}
	for _, pf := range p.GetFields() {
		f := Field{Name: pf.GetName(), Kind: Kind(pf.GetKind()), Unit: pf.GetUnit(), Exposed: pf.GetExposedUnit(), Help: pf.GetHelp()}
		switch {
		case !validName(f.Name):
			return nil, fmt.Errorf("schema %q, field %.40q: not a name", s.Name, f.Name)
		case pf.GetKind() < 1 || pf.GetKind() > statsv1.Kind(Histogram):
			return nil, fmt.Errorf("schema %q, field %q: kind %d is none that this statsd knows", s.Name, f.Name, pf.GetKind())
		case len(f.Unit) > 16 || len(f.Exposed) > 16 || len(f.Help) > maxHelpBytes || !utf8.ValidString(f.Help):
			return nil, fmt.Errorf("schema %q, field %q: its unit or help text is too long", s.Name, f.Name)
		}
		var err error
		if f.Labels, err = labelsOf(pf.GetLabels()); err != nil {
			return nil, fmt.Errorf("schema %q, field %q: %w", s.Name, f.Name, err)
		}
		f.Cell, f.Cells = s.Cells, f.Kind.cells()
		s.Cells += f.Cells
		s.Fields = append(s.Fields, f)
	}
	if s.Cells > ExtentCells {
		return nil, fmt.Errorf("schema %q needs %d cells a group: at most %d are possible", s.Name, s.Cells, ExtentCells)
	}
	payload, err := appendSchema(nil, s)
	if err != nil {
		return nil, err
	}
	s.setKey(payload)
	return s, nil
}

func (s *Schema) setKey(payload []byte) {
	sum := sha256.Sum256(payload)
	s.key, s.id = string(payload), string(sum[:16])
}

func labelsOf(list []*statsv1.Label) ([]Label, error) {
	if len(list) > MaxLabels {
		return nil, fmt.Errorf("%d labels: at most %d are possible", len(list), MaxLabels)
	}
	labels := make([]Label, 0, len(list))
	for _, l := range list {
		switch {
		case !validLabelName(l.GetName()):
			return nil, fmt.Errorf("label %.40q: not a label's name", l.GetName())
		case len(l.GetValue()) > MaxValueBytes:
			return nil, fmt.Errorf("label %q: a value of %d bytes, at most %d are possible", l.GetName(), len(l.GetValue()), MaxValueBytes)
		}
		labels = append(labels, Label{l.GetName(), strings.ToValidUTF8(l.GetValue(), "\uFFFD")})
	}
	slices.SortFunc(labels, func(a, b Label) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(labels); i++ {
		if labels[i].Name == labels[i-1].Name {
			return nil, fmt.Errorf("label %q is given twice", labels[i].Name)
		}
	}
	return labels, nil
}

func validName(s string) bool {
	return s != "" && len(s) <= MaxNameBytes && (s[0] < '0' || s[0] > '9') &&
		wordBytes(s) && s == strings.ToLower(s)
}

func validLabelName(s string) bool {
	return s != "" && len(s) <= MaxNameBytes && (s[0] < '0' || s[0] > '9') && !strings.HasPrefix(s, "__") &&
		s != "le" && s != "quantile" && wordBytes(s)
}

func wordBytes(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// A record of the catalogue: 16 bytes of head, its payload, zeros up to a multiple of 8.
const (
	recordHead = 16 // uint32 length of all, uint16 kind, uint16 0, uint32 payload length, uint32 CRC-32C of kind and payload

	recordSchema = 1
	recordGroup  = 2
	recordRetire = 3
	recordSkip   = 4 // fills a segment up to its end
	recordOther  = 5 // minor 1: comes before the group that it is about
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(kind uint16, payload []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, []byte{byte(kind), byte(kind >> 8)}), castagnoli, payload)
}

func appendRecord(dst []byte, kind uint16, payload []byte) []byte {
	length := recordHead + (len(payload)+7)&^7
	dst = binary.LittleEndian.AppendUint32(dst, uint32(length))
	dst = binary.LittleEndian.AppendUint16(dst, kind)
	dst = binary.LittleEndian.AppendUint16(dst, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.LittleEndian.AppendUint32(dst, checksum(kind, payload))
	dst = append(dst, payload...)
	return append(dst, make([]byte, length-recordHead-len(payload))...)
}

// nextRecord returns the first record of b, which ends where the segment or the committed catalogue ends.
func nextRecord(b []byte) (kind uint16, payload []byte, length int, err error) {
	if len(b) < recordHead {
		return 0, nil, 0, fmt.Errorf("%w: a catalogue record is cut off", ErrLayout)
	}
	length = int(binary.LittleEndian.Uint32(b))
	kind = binary.LittleEndian.Uint16(b[4:])
	n := int(binary.LittleEndian.Uint32(b[8:]))
	if length < recordHead || length%8 != 0 || length > len(b) || n > length-recordHead {
		return 0, nil, 0, fmt.Errorf("%w: a catalogue record of %d bytes where %d are left", ErrLayout, length, len(b))
	}
	// A copy: what is checked and what is decoded must be the same bytes even if somebody writes here.
	payload = slices.Clone(b[recordHead : recordHead+n])
	if checksum(kind, payload) != binary.LittleEndian.Uint32(b[12:]) {
		return 0, nil, 0, fmt.Errorf("%w: a catalogue record with a wrong checksum", ErrLayout)
	}
	return kind, payload, length, nil
}

func appendString(dst []byte, s string) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

func appendLabels(dst []byte, labels []Label) []byte {
	dst = append(dst, byte(len(labels)))
	for _, l := range labels {
		dst = appendString(appendString(dst, l.Name), l.Value)
	}
	return dst
}

// appendSchema writes name, number of fields, then each field behind its own length, so that a later minor may add to it.
func appendSchema(dst []byte, s *Schema) ([]byte, error) {
	start := len(dst)
	dst = appendString(dst, s.Name)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(s.Fields)))
	for _, f := range s.Fields {
		at := len(dst)
		dst = append(dst, 0, 0, 0, 0)
		dst = append(dst, byte(f.Kind))
		dst = binary.LittleEndian.AppendUint32(dst, uint32(f.Cells))
		dst = appendString(appendString(appendString(dst, f.Name), f.Unit), f.Exposed)
		dst = appendString(appendLabels(dst, f.Labels), f.Help)
		binary.LittleEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	}
	if len(dst)-start > CatalogueSegmentBytes/2 {
		return nil, fmt.Errorf("schema %q takes %d bytes in the catalogue: at most %d are possible", s.Name, len(dst)-start, CatalogueSegmentBytes/2)
	}
	return dst, nil
}

// decoder reads a payload; after the first lack of bytes it is bad and returns zeros.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.b) {
		d.bad = true
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) uint(n int) (v uint64) {
	for i, c := range d.take(n) {
		v |= uint64(c) << (8 * i)
	}
	return v
}

func (d *decoder) string() string { return string(d.take(int(d.uint(2)))) }

func (d *decoder) labels() []Label {
	n := int(d.uint(1))
	if n > MaxLabels {
		d.bad = true
		return nil
	}
	labels := make([]Label, 0, n)
	for range n {
		l := Label{d.string(), d.string()}
		d.bad = d.bad || !validLabelName(l.Name) || len(l.Value) > MaxValueBytes || !utf8.ValidString(l.Value)
		labels = append(labels, l)
	}
	return labels
}

func decodeSchema(payload []byte) (*Schema, error) {
	d := decoder{b: payload}
	s := &Schema{Name: d.string()}
	s.setKey(payload)
	n := d.uint(4)
	d.bad = d.bad || n == 0 || n > MaxFields || !validName(s.Name)
	for range n {
		f := decoder{b: d.take(int(d.uint(4)))}
		field := Field{Kind: Kind(f.uint(1)), Cells: int(f.uint(4)), Cell: s.Cells}
		field.Name, field.Unit, field.Exposed = f.string(), f.string(), f.string()
		field.Labels = f.labels()
		field.Help = f.string()
		known := field.Kind >= Counter && field.Kind <= Histogram
		d.bad = d.bad || f.bad || !validName(field.Name) || field.Cells < 1 || field.Cells > ExtentCells ||
			known && field.Cells != field.Kind.cells() || !utf8.ValidString(field.Help)
		if s.Cells += field.Cells; d.bad || s.Cells > ExtentCells {
			return nil, fmt.Errorf("%w: a schema of the catalogue makes no sense", ErrLayout)
		}
		s.Fields = append(s.Fields, field)
	}
	if d.bad {
		return nil, fmt.Errorf("%w: a schema of the catalogue is cut off", ErrLayout)
	}
	return s, nil
}

func groupPayload(schema uint32, base uint64, labels []Label) []byte {
	b := binary.LittleEndian.AppendUint32(nil, schema)
	return appendLabels(binary.LittleEndian.AppendUint64(b, base), labels)
}

// OtherValue is the value of every label of the series that stands for those beyond the cap.
const OtherValue = "__other__"

// ShownLabels are the labels of the series that the group is a part of.
func (g *Group) ShownLabels() []Label {
	if !g.Other {
		return g.Labels
	}
	labels := slices.Clone(g.Labels)
	for i := range labels {
		labels[i].Value = OtherValue
	}
	return labels
}

// Shown reports whether the group's cells are part of a series. A retired one of many that are shown as one stays, so that
// their sum does not fall.
func (g *Group) Shown() bool { return !g.Retired || g.Other }

func retirePayload(base uint64, retired bool) []byte {
	b := binary.LittleEndian.AppendUint64(nil, base)
	if retired {
		return append(b, 1)
	}
	return append(b, 0)
}

// catalogue is the decoded content of the catalogue's segments, in order of declaration.
type catalogue struct {
	schemas  []*Schema
	schemaOf map[string]uint32 // key → ordinal
	groups   []*Group
	groupOf  map[string]*Group // key → group
	at       map[uint64]*Group // base → group
	retired  int
	nextCell uint64
	// by the schema's name: groups with series of their own, which are not retired, and groups that have none
	own, otherGroups map[string]int
	others           map[uint64]bool // bases of groups to come that have none
	committed        uint64          // bytes of the catalogue decoded so far
}

func newCatalogue() *catalogue {
	return &catalogue{
		schemaOf: map[string]uint32{}, groupOf: map[string]*Group{}, at: map[uint64]*Group{},
		own: map[string]int{}, otherGroups: map[string]int{}, others: map[uint64]bool{},
	}
}

// groupKey is the identity of a group across regions: its schema's content and its labels.
func groupKey(s *Schema, labels []Label) string { return s.id + string(appendLabels(nil, labels)) }

func (c *catalogue) addSchema(s *Schema) {
	c.schemaOf[s.key] = uint32(len(c.schemas))
	c.schemas = append(c.schemas, s)
}

func (c *catalogue) addGroup(g *Group) {
	if g.Other = c.others[g.Base]; g.Other {
		c.otherGroups[g.Schema.Name]++
		delete(c.others, g.Base)
	} else {
		c.own[g.Schema.Name]++
	}
	c.groups = append(c.groups, g)
	c.groupOf[g.key] = g
	c.at[g.Base] = g
	c.nextCell = max(c.nextCell, g.Base+uint64(g.Schema.Cells))
}

func (c *catalogue) setRetired(g *Group, retired bool) {
	if g.Retired == retired {
		return
	}
	g.Retired = retired
	n := 1
	if !retired {
		n = -1
	}
	c.retired += n
	if !g.Other {
		c.own[g.Schema.Name] -= n
	}
}

// apply takes one record over.
func (c *catalogue) apply(kind uint16, payload []byte) error {
	d := decoder{b: payload}
	switch kind {
	case recordSchema:
		s, err := decodeSchema(payload)
		if err != nil {
			return err
		}
		c.addSchema(s)
	case recordGroup:
		ordinal, base, labels := d.uint(4), d.uint(8), d.labels()
		if d.bad || ordinal >= uint64(len(c.schemas)) {
			return fmt.Errorf("%w: a group of the catalogue names no schema", ErrLayout)
		}
		s := c.schemas[ordinal]
		if base < c.nextCell || base > maxCell || base%ExtentCells+uint64(s.Cells) > ExtentCells {
			return fmt.Errorf("%w: a group of the catalogue lies at cell %d, where none can", ErrLayout, base)
		}
		c.addGroup(&Group{Schema: s, Labels: labels, Base: base, key: groupKey(s, labels)})
	case recordRetire:
		base, retired := d.uint(8), d.uint(1)
		g := c.at[base]
		if d.bad || g == nil {
			return fmt.Errorf("%w: the catalogue retires a group that it does not have", ErrLayout)
		}
		c.setRetired(g, retired == 1)
	case recordOther:
		if base := d.uint(8); !d.bad {
			c.others[base] = true
		}
	}
	return nil
}

// maxCell bounds the cell space: 2^32 cells, 32 GiB a sheet.
const maxCell = 1 << 32

// catchUp decodes what was committed since the last call. segment returns a mapped segment of the catalogue.
func (c *catalogue) catchUp(committed uint64, segment func(n uint64) ([]byte, error)) error {
	for c.committed < committed {
		n, offset := c.committed/CatalogueSegmentBytes, c.committed%CatalogueSegmentBytes
		if left := CatalogueSegmentBytes - offset; left < recordHead {
			c.committed += left // too little for a record of any kind
			continue
		}
		m, err := segment(n)
		if err != nil {
			return err
		}
		end := min(committed-n*CatalogueSegmentBytes, CatalogueSegmentBytes)
		if end > uint64(len(m)) {
			return fmt.Errorf("%w: the catalogue is shorter than it says", ErrLayout)
		}
		kind, payload, length, err := nextRecord(m[offset:end])
		if err != nil {
			return err
		}
		if err := c.apply(kind, payload); err != nil {
			return err
		}
		c.committed += uint64(length)
	}
	return nil
}
