package compile

import (
	"os"
	"path/filepath"
	"testing"

	"retinue.dev/configd/internal/syntax"
)

// TestPlaces holds that the place of an object and of its fields is known, by names that do not depend on where the
// configuration lies, and that a diagnostic about one shows the source line.
func TestPlaces(t *testing.T) {
	const text = `cluster "a" {
  endpoints = ["10.0.0.1:1",
    "10.0.0.2:1"]
}
listener "l" {
  address = ["127.0.0.1:1", "127.0.0.1:2"]
  http {
    virtual_host "*" {
      route "/*" { cluster = cluster.a }
    }
  }
}
`
	var ids []string
	for _, sub := range []string{"one", "two"} {
		dir := filepath.Join(t.TempDir(), sub)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "main.hcl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := Path(dir, os.LookupEnv, syntax.ReadFile)
		if r.Snapshot == nil {
			t.Fatal(r.Text(false))
		}
		ids = append(ids, r.Snapshot.ID)
		for _, c := range []struct {
			kind, name, field string
			line, column      int
		}{
			{"listener", "l", "", 5, 1},
			{"listener", "l", "address[1]", 6, 29},
			{"listener", "l", "address[7]", 6, 13},
			{"listener", "l", "unheard.of", 5, 1},
			{"cluster", "a", "endpoints[1]", 3, 5},
			{"http", "l", "", 7, 3},
		} {
			p, ok := r.Snapshot.Where(c.kind, c.name, c.field)
			if !ok || p.File != "main.hcl" || p.Line != c.line || p.Column != c.column {
				t.Errorf("%s %q %s is at %+v %v, want line %d column %d", c.kind, c.name, c.field, p, ok, c.line, c.column)
			}
		}
		if _, ok := r.Snapshot.Where("listener", "nobody", ""); ok {
			t.Error("a place for what is not there")
		}
		p, _ := r.Snapshot.Where("listener", "l", "address[1]")
		at := r.Range(p)
		if got := text[at.Start.Byte:at.End.Byte]; got != `"127.0.0.1:2"` || at.Filename != filepath.Join(dir, "main.hcl") {
			t.Errorf("range %v marks %q", at, got)
		}
		http, route := "", ""
		for _, o := range r.Snapshot.Objects {
			if h := o.GetHttp(); h != nil {
				http, route = h.GetSource().GetFile(), h.GetVirtualHosts()[0].GetRoutes()[0].GetSource().String()
			}
		}
		if http != "main.hcl" || route == "" {
			t.Errorf("sources %q %q", http, route)
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("the same files at two places are snapshots %s and %s", ids[0], ids[1])
	}
}
