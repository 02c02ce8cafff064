package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestDependencies states what the rooms of proxyd may not import, and why.
func TestDependencies(t *testing.T) {
	dataPath := []string{"poller", "buffer", "timer", "worker", "conn", "listener", "tcpproxy", "header", "http1", "route", "stream", "filter", "hcm", "cluster", "upstream", "plugin"}
	pure := []string{"buffer", "timer", "header", "http1", "route", "cluster"}
	bans := []struct {
		rooms  []string // nil: all of proxyd
		banned string   // import path, or a prefix ending in "/"
		reason string
	}{
		{nil, "github.com/hashicorp/", "proxyd never sees HCL: it receives compiled objects"},
		{nil, "os/exec", "proxyd never forks"},
		{nil, "retinue.dev/configd/", "a daemon never imports a daemon"},
		{nil, "retinue.dev/restartd/", "a daemon never imports a daemon"},
		{nil, "retinue.dev/statsd/", "a daemon never imports a daemon"},
		{dataPath, "google.golang.org/grpc", "gRPC never stands on the data path"},
		{dataPath, "google.golang.org/grpc/", "gRPC never stands on the data path"},
		{dataPath, "net", "the data path uses raw descriptors: package net would take them into its poller"},
		{dataPath, "net/http", "the codecs are ours"},
		{dataPath, "os", "os.File flips O_NONBLOCK on every copy of a shared socket"},
		{dataPath, "log/slog", "logging locks and allocates"},
		{pure, "sync", "pure rooms have no threads"},
		{pure, "syscall", "pure rooms make no system calls"},
		{[]string{"timer", "header", "http1", "route", "cluster"}, "golang.org/x/sys/unix", "pure rooms make no system calls"},
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
				if (imported == ban.banned || strings.HasSuffix(ban.banned, "/") && strings.HasPrefix(imported, ban.banned)) && applies(ban.rooms, room) {
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

func applies(rooms []string, room string) bool {
	if rooms == nil {
		return true
	}
	for _, r := range rooms {
		if r == room {
			return true
		}
	}
	return false
}
