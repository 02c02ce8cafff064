package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestDependencies states what the rooms of configd may not import, and why.
func TestDependencies(t *testing.T) {
	compiler := []string{"diag", "schema", "eval", "compile", "logformat", "snapshot"}
	bans := []struct {
		rooms  []string // nil: all of configd
		banned string   // import path, or a prefix ending in "/"
		reason string
	}{
		{nil, "retinue.dev/proxyd/", "a daemon never imports a daemon"},
		{nil, "retinue.dev/statsd/", "a daemon never imports a daemon"},
		{nil, "retinue.dev/restartd/", "a daemon never imports a daemon"},
		{nil, "os/exec", "configd starts nothing"},
		{nil, "net/http", "configd speaks HTTP with nobody; discovery asks name servers"},
		{nil, "github.com/hashicorp/hcl/v2/hclparse", "it reads files by itself, without our bounds"},
		{nil, "github.com/hashicorp/hcl/v2/hclsimple", "it reads files by itself, without our bounds"},
		{compiler, "os", "evaluation sees nothing but its inputs: same files, same snapshot"},
		{compiler, "net", "DNS is never part of validity (net/netip parses addresses)"},
		{compiler, "math/rand", "no randomness: same files, same snapshot"},
		{compiler, "math/rand/v2", "no randomness: same files, same snapshot"},
		{compiler, "google.golang.org/grpc", "the compiler is no server"},
		{compiler, "google.golang.org/grpc/", "the compiler is no server"},
	}
	clockless := []string{"diag", "eval", "compile", "logformat", "snapshot"}
	err := filepath.WalkDir("internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		room := strings.Split(filepath.ToSlash(path), "/")[1]
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			for _, ban := range bans {
				hit := imported == ban.banned || strings.HasSuffix(ban.banned, "/") && strings.HasPrefix(imported, ban.banned)
				if hit && (ban.rooms == nil || slices.Contains(ban.rooms, room)) {
					t.Errorf("%s imports %s: %s", path, imported, ban.reason)
				}
			}
			// schema parses durations with package time and asks it for no clock.
			if imported == "time" && slices.Contains(clockless, room) {
				t.Errorf("%s imports time: the compiler has no clock", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
