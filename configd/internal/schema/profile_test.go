package schema

import (
	"bytes"
	"os"
	"testing"
)

// TestProfileIsDocumented holds docs/edge.md to the text that is in force.
func TestProfileIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../docs/edge.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := bytes.Cut(edge, []byte("\n"))
	if !bytes.Contains(page, append([]byte("```hcl\n"), text...)) {
		t.Errorf("docs/edge.md does not show the profile as it is:\n%s", text)
	}
}
