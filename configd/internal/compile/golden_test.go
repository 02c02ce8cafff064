package compile

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	configv1 "retinue.dev/services/api/config/v1"
	filterv1 "retinue.dev/services/api/filter/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/eval"
	"retinue.dev/configd/internal/snapshot"
	"retinue.dev/configd/internal/syntax"
)

var update = flag.Bool("update", false, "write what is found into the golden files")

// golden is one file of testdata: sections that begin with "-- name --". Names with a dot are files of the
// configuration (those that are not .hcl or .json are for file()), "env" is the environment, "want" the outcome.
type golden struct {
	sources []syntax.Source
	files   map[string]string
	env     map[string]string
	want    string
	input   string // everything before want
}

func readGolden(t *testing.T, path string) golden {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	g := golden{files: map[string]string{}, env: map[string]string{}}
	g.input, _, _ = strings.Cut(string(data), "-- want --\n")
	var name string
	var body strings.Builder
	flush := func() {
		switch {
		case name == "":
		case name == "want":
			g.want = body.String()
		case name == "env":
			for line := range strings.Lines(body.String()) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
				g.env[k] = v
			}
		case strings.HasSuffix(name, ".hcl") || syntax.IsJSON(name):
			g.sources = append(g.sources, syntax.Source{Name: name, Data: []byte(body.String())})
		default:
			g.files[name] = body.String()
		}
		body.Reset()
	}
	for line := range strings.Lines(string(data)) {
		if n, ok := strings.CutPrefix(line, "-- "); ok && strings.HasSuffix(n, " --\n") {
			flush()
			name = strings.TrimSuffix(n, " --\n")
			continue
		}
		body.WriteString(line)
	}
	flush()
	return g
}

// schemas are the files NAME.schema; without one nothing is looked up.
func (g golden) schemas() Schemas {
	known := false
	for name := range g.files {
		known = known || strings.HasSuffix(name, ".schema")
	}
	if !known {
		return nil
	}
	return func(p *configv1.Plugin) (*filterv1.Schema, error) {
		text, ok := g.files[p.GetCommand()+".schema"]
		if !ok {
			return nil, errors.New("what it takes is not known")
		}
		s := &filterv1.Schema{}
		return s, protojson.Unmarshal([]byte(text), s)
	}
}

func (g golden) compile() *Result {
	diags := &diag.List{}
	files := syntax.Parse(g.sources, diags)
	return compile(files, diags, eval.Inputs{
		Dir: "/conf",
		Env: func(name string) (string, bool) { v, ok := g.env[name]; return v, ok },
		ReadFile: func(path string, limit int) ([]byte, error) {
			text, ok := g.files[strings.TrimPrefix(path, "/conf/")]
			if !ok {
				return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
			}
			if len(text) > limit {
				return nil, errors.New("too large")
			}
			return []byte(text), nil
		},
	}, g.schemas())
}

// TestGolden compiles every file of testdata and compares diagnostics and snapshot with what the file holds.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) < 60 {
		t.Fatalf("%d golden files: %v", len(paths), err)
	}
	base := plain(t)
	for _, p := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(p), ".txt"), func(t *testing.T) {
			g := readGolden(t, p)
			got := outcome(t, g.compile(), base)
			if *update {
				if err := os.WriteFile(p, []byte(g.input+"-- want --\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != g.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, g.want)
			}
		})
	}
}

// outcome writes diagnostics and then one line an object, without what every configuration holds.
func outcome(t *testing.T, r *Result, base map[string]map[string]any) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(r.Text(false))
	if (r.Snapshot == nil) != r.Diags.HasErrors() {
		t.Errorf("snapshot %v with %d errors", r.Snapshot, r.Diags.Errors())
	}
	if r.Snapshot == nil {
		return b.String()
	}
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	b.WriteString(render(t, r.Snapshot, base))
	return b.String()
}

func render(t *testing.T, s *snapshot.Snapshot, base map[string]map[string]any) string {
	t.Helper()
	var b strings.Builder
	for _, o := range s.Objects {
		m := fields(t, o.GetKind(), s, o.GetName())
		for k, v := range base[o.GetKind()] {
			switch {
			case same(m[k], v):
				delete(m, k)
			case m[k] == nil:
				m[k] = nil // shown, since it is a default switched off
			}
		}
		if len(m) == 0 {
			continue
		}
		b.WriteString(o.GetKind())
		if o.GetName() != "" {
			b.WriteString(" " + o.GetName())
		}
		delete(m, "name")
		hosts, _ := m["virtualHosts"].([]any)
		delete(m, "virtualHosts")
		b.WriteString(" " + compact(m) + "\n")
		for _, h := range hosts {
			host := h.(map[string]any)
			routes, _ := host["routes"].([]any)
			delete(host, "routes")
			b.WriteString("  " + compact(host) + "\n")
			for _, r := range routes {
				b.WriteString("    " + compact(r) + "\n")
			}
		}
	}
	return b.String()
}

func fields(t *testing.T, kind string, s *snapshot.Snapshot, name string) map[string]any {
	t.Helper()
	for _, o := range s.Objects {
		if o.GetKind() != kind || o.GetName() != name {
			continue
		}
		data, err := protojson.Marshal(snapshot.Body(o))
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		drop(m)
		return m
	}
	return nil
}

// drop removes sources, which have a test of their own.
func drop(v any) {
	switch x := v.(type) {
	case map[string]any:
		delete(x, "source")
		for _, e := range x {
			drop(e)
		}
	case []any:
		for _, e := range x {
			drop(e)
		}
	}
}

func compact(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return strings.TrimSpace(b.String())
}

func same(a, b any) bool { return compact(a) == compact(b) }

// plain gives the fields of each kind when nothing is written that need not be.
func plain(t *testing.T) map[string]map[string]any {
	t.Helper()
	g := golden{sources: []syntax.Source{{Name: "plain.hcl", Data: []byte(`
listener "a" {
  address = ["127.0.0.1:1"]
  http {
    virtual_host "x" {
      route "/" { cluster = cluster.a }
    }
  }
}
cluster "a" { endpoints = ["127.0.0.1:2"] }
`)}}}
	r := g.compile()
	if r.Snapshot == nil {
		t.Fatal(r.Text(false))
	}
	out := map[string]map[string]any{}
	for _, o := range r.Snapshot.Objects {
		m := fields(t, o.GetKind(), r.Snapshot, o.GetName())
		for _, own := range []string{"name", "statPrefix", "addresses", "filterChains", "virtualHosts", "endpoints"} {
			delete(m, own)
		}
		out[o.GetKind()] = m
	}
	return out
}

// TestCodesHaveGoldens holds that every code that a configuration can cause appears in a golden file.
func TestCodesHaveGoldens(t *testing.T) {
	paths, _ := filepath.Glob("testdata/*.txt")
	var all bytes.Buffer
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		_, want, _ := bytes.Cut(data, []byte("-- want --\n"))
		all.Write(want)
	}
	elsewhere := []diag.Code{ // files, sizes and daemons: tests of their own
		diag.FileRead, diag.FileTooLarge, diag.NoFiles, diag.TooManyObjects,
		diag.Refused, diag.NoAnswer, diag.WentAway, diag.NotConfirmed, diag.NotSaved,
	}
	for _, e := range diag.Entries() {
		if !slices.Contains(elsewhere, e.Code) && !bytes.Contains(all.Bytes(), []byte("["+string(e.Code)+"]")) {
			t.Errorf("no golden file shows %s (%s)", e.Code, e.Title)
		}
	}
}
