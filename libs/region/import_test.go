package region

import (
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	statsv1 "retinue.dev/services/api/stats/v1"
)

// FuzzImport reads exports that no owner wrote: they may be refused or left out in part; what they declare is within the
// bounds of every declaration, and the region can be read afterwards.
func FuzzImport(f *testing.F) {
	whole, err := proto.Marshal(&statsv1.Export{
		Schemas: []*statsv1.Schema{{Name: "test", Fields: []*statsv1.Field{{Name: "n", Kind: statsv1.Kind_KIND_COUNTER}, {Name: "h", Kind: statsv1.Kind_KIND_HISTOGRAM}}}},
		Groups: []*statsv1.ExportedGroup{
			{Group: &statsv1.Group{Labels: []*statsv1.Label{{Name: "a", Value: "b"}}}, Cells: []uint32{0, 5}, Values: []uint64{7, 8}},
			{Group: &statsv1.Group{Schema: 9}, Cells: []uint32{1 << 31}, Values: []uint64{1}, Other: true},
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{})
	work := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := filepath.Join(t.TempDir(), "region")
		st, err := Open(dir, Options{MaxGroups: 50})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if _, err := st.importTotals(b); err != nil {
			return
		}
		r, err := OpenReader(dir, work)
		if err != nil {
			t.Fatalf("what was imported cannot be read: %v", err)
		}
		defer r.Close()
		if n := len(r.Groups()); n > 50 {
			t.Fatalf("%d groups, the cap is 50", n)
		}
		for _, g := range r.Groups() {
			if err := r.Read(g, make([]uint64, g.Schema.Cells)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
