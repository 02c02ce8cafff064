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

// TestDependencies states what the rooms of statsd may not import, and why.
func TestDependencies(t *testing.T) {
	bans := []struct {
		rooms  []string // nil: all of statsd
		banned string   // import path, or a prefix ending in "/"
		reason string
	}{
		{nil, "retinue.dev/proxyd/", "a daemon never imports a daemon"},
		{nil, "retinue.dev/configd/", "a daemon never imports a daemon"},
		{nil, "retinue.dev/restartd/", "a daemon never imports a daemon"},
		{nil, "os/exec", "statsd starts nothing"},
		{nil, "unsafe", "mapped memory is libs/region's alone"},
		{nil, "net/http/pprof", "the HTTP side shows names and numbers, not memory"},
		{nil, "github.com/prometheus/", "the exposition is ours, over the region: the library is a test's oracle"},
		{[]string{"exposition", "history", "keeper", "settings", "suite", "control"}, "net/http", "HTTP is one room's"},
		{[]string{"exposition", "history", "web"}, "google.golang.org/grpc", "what shows numbers asks nobody: suite does, and push sends"},
	}
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
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
