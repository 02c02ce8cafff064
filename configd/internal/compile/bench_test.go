package compile

import (
	"fmt"
	"strings"
	"testing"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/eval"
	"retinue.dev/configd/internal/syntax"
)

// large is a configuration of n clusters and n routes to them.
func large(n int) []byte {
	var b strings.Builder
	b.WriteString("listener \"web\" {\n  address = [\"127.0.0.1:10000\"]\n  http {\n    virtual_host \"all\" {\n      domains = [\"*\"]\n")
	for i := range n {
		fmt.Fprintf(&b, "      route \"/service-%d/*\" {\n        cluster = cluster.service-%d\n        timeout = \"5s\"\n      }\n", i, i)
	}
	b.WriteString("    }\n  }\n}\n")
	for i := range n {
		fmt.Fprintf(&b, "cluster \"service-%d\" {\n  endpoints       = [\"10.%d.%d.%d:8080\", \"10.%d.%d.%d:8081\"]\n  connect_timeout = \"1s\"\n  balance         = \"least_request\"\n}\n", i, i>>16&255, i>>8&255, i&255, i>>16&255, i>>8&255, i&255)
	}
	return []byte(b.String())
}

func compileSource(name string, data []byte) *Result {
	diags := &diag.List{}
	files := syntax.Parse([]syntax.Source{{Name: name, Data: data}}, diags)
	return Files(files, diags, eval.Inputs{
		Env:      func(string) (string, bool) { return "", false },
		ReadFile: func(path string, _ int) ([]byte, error) { return nil, fmt.Errorf("no file %s", path) },
	})
}

// BenchmarkSnapshot compiles 10,000 clusters and 10,000 routes.
func BenchmarkSnapshot(b *testing.B) {
	src := large(10_000)
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		if r := compileSource("large.hcl", src); r.Snapshot == nil {
			b.Fatal(r.Text(false))
		}
	}
}
