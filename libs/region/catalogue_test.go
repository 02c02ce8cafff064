package region

import (
	"testing"

	statsv1 "retinue.dev/services/api/stats/v1"
)

// FuzzCatalogue decodes records whose checksum is right and whose content is anything.
func FuzzCatalogue(f *testing.F) {
	schema, err := SchemaOf(&statsv1.Schema{Name: "http", Fields: []*statsv1.Field{
		{Name: "rq_total", Kind: statsv1.Kind_KIND_COUNTER, Help: "Requests."},
		{Name: "rq_xx", Kind: statsv1.Kind_KIND_COUNTER, Labels: []*statsv1.Label{{Name: "class", Value: "2"}}},
		{Name: "rq_time", Kind: statsv1.Kind_KIND_HISTOGRAM, Unit: "us"},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(recordSchema), []byte(schema.key), []byte(nil))
	f.Add(uint16(recordGroup), []byte(schema.key), groupPayload(0, 300, []Label{{"listener", "web"}}))
	f.Add(uint16(recordRetire), []byte(schema.key), retirePayload(0, true))
	f.Add(uint16(99), []byte("what a later version writes"), []byte{1})
	f.Fuzz(func(t *testing.T, kind uint16, first, second []byte) {
		if len(first)+len(second) > CatalogueSegmentBytes/2 {
			return
		}
		segment := appendRecord(appendRecord(nil, recordSchema, first), kind, second)
		c := newCatalogue()
		err := c.catchUp(uint64(len(segment)), func(uint64) ([]byte, error) { return segment, nil })
		if err == nil && c.committed != uint64(len(segment)) {
			t.Fatalf("decoded %d bytes of %d", c.committed, len(segment))
		}
		for _, s := range c.schemas {
			if s.Cells > ExtentCells || len(s.Fields) > MaxFields {
				t.Fatalf("a schema of %d cells and %d fields", s.Cells, len(s.Fields))
			}
			end := 0
			for _, f := range s.Fields {
				if f.Cell != end {
					t.Fatalf("field %q begins at %d, the one before ends at %d", f.Name, f.Cell, end)
				}
				end += f.Cells
			}
			again, err := appendSchema(nil, s)
			if err == nil {
				if back, err := decodeSchema(again); err != nil || len(back.Fields) != len(s.Fields) || back.Cells != s.Cells {
					t.Fatalf("a schema does not survive encoding: %v", err)
				}
			}
		}
		for _, g := range c.groups {
			if g.Base%ExtentCells+uint64(g.Schema.Cells) > ExtentCells {
				t.Fatalf("a group of %d cells at %d", g.Schema.Cells, g.Base)
			}
		}
	})
}

// TestLaterMinor: fields that a later minor appends, kinds it adds and records it invents are passed over.
func TestLaterMinor(t *testing.T) {
	s := &Schema{Name: "new", Fields: []Field{
		{Name: "sketch", Kind: 9, Cells: 40},
		{Name: "n", Kind: Counter, Cells: 1, Cell: 40},
	}}
	payload, err := appendSchema(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	// The last field becomes longer by three bytes.
	last := len(payload) - (1 + 4 + 2 + 1 + 2 + 2 + 1 + 2)
	payload[last-4] += 3
	payload = append(payload, 7, 7, 7)
	segment := appendRecord(nil, 77, []byte("unknown"))
	segment = appendRecord(segment, recordSchema, payload)
	segment = appendRecord(segment, recordGroup, groupPayload(0, 0, nil))
	c := newCatalogue()
	if err := c.catchUp(uint64(len(segment)), func(uint64) ([]byte, error) { return segment, nil }); err != nil {
		t.Fatal(err)
	}
	if f := c.groups[0].Schema.Fields[1]; f.Name != "n" || f.Cell != 40 || c.nextCell != 41 {
		t.Errorf("field %+v, %d cells", f, c.nextCell)
	}
}
