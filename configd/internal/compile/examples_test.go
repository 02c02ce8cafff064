package compile

import (
	"os"
	"path/filepath"
	"testing"

	"retinue.dev/configd/internal/syntax"
)

// TestExamples holds that every example compiles without a word, by itself.
func TestExamples(t *testing.T) {
	paths, err := filepath.Glob("../../../examples/*")
	if err != nil {
		t.Fatal(err)
	}
	compiled := 0
	for _, p := range paths {
		if filepath.Ext(p) != ".hcl" && !syntax.IsJSON(p) {
			continue
		}
		compiled++
		r := Path(p, os.LookupEnv, syntax.ReadFile)
		if text := r.Text(false); r.Snapshot == nil || text != "" {
			t.Errorf("%s:\n%s", p, text)
		}
	}
	if compiled < 5 {
		t.Errorf("only %d examples", compiled)
	}
}
