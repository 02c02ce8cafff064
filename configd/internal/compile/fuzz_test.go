package compile

import (
	"os"
	"path/filepath"
	"testing"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/snapshot"
)

// seeds adds the configurations of the golden files and of examples/ in one of the two forms.
func seeds(f *testing.F, json bool) {
	f.Helper()
	paths, _ := filepath.Glob("testdata/*.txt")
	for _, p := range paths {
		var t testing.T
		for _, s := range readGolden(&t, p).sources {
			if (filepath.Ext(s.Name) == ".json") == json {
				f.Add(s.Data)
			}
		}
	}
	ext := "*.hcl"
	if json {
		ext = "*.json"
	}
	paths, _ = filepath.Glob("../../../examples/" + ext)
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

// FuzzHCL holds that no text makes the compiler panic or hang, that it either says an error or makes a snapshot, and
// that every form of diagnostics can be written.
func FuzzHCL(f *testing.F) {
	seeds(f, false)
	f.Fuzz(func(t *testing.T, data []byte) { hold(t, "fuzz.hcl", data) })
}

// FuzzJSON is FuzzHCL for the JSON form.
func FuzzJSON(f *testing.F) {
	seeds(f, true)
	f.Fuzz(func(t *testing.T, data []byte) { hold(t, "fuzz.json", data) })
}

func hold(t *testing.T, name string, data []byte) {
	if len(data) > 64<<10 {
		return
	}
	r := compileSource(name, data)
	if (r.Snapshot == nil) != r.Diags.HasErrors() {
		t.Fatalf("snapshot %v with %d errors:\n%s", r.Snapshot, r.Diags.Errors(), r.Text(false))
	}
	r.Text(true)
	r.Diags.Unix()
	r.Diags.JSON()
	shown, _ := r.Diags.Sorted()
	diag.Proto(shown)
	if len(shown) > diag.MaxShown {
		t.Fatalf("%d diagnostics", len(shown))
	}
	if r.Snapshot == nil {
		return
	}
	again := compileSource(name, data)
	if again.Snapshot == nil || again.Snapshot.ID != r.Snapshot.ID {
		t.Fatalf("the same file gives %s and then another snapshot", r.Snapshot.ID)
	}
	for _, o := range r.Snapshot.Objects {
		if !snapshot.Complete(o) || len(o.GetHash()) != 32 {
			t.Fatalf("incomplete object %v", o)
		}
	}
}
