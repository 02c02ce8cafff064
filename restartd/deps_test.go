package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Sockets are raw descriptors: an os.File registers them with the runtime's poller, and its Fd method makes the open
// file blocking, for every process that holds a copy.
func TestSocketsAreNeverFiles(t *testing.T) {
	banned := map[string]map[string]string{
		"os":  {"NewFile": "wraps a descriptor into an os.File"},
		"net": {"FileListener": "duplicates and wraps", "FileConn": "duplicates and wraps", "Listen": "makes sockets that only a net.Listener holds", "ListenTCP": "the same", "ListenUnix": "the same"},
	}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if sel.Sel.Name == "Fd" {
				t.Errorf("%s: .Fd() makes a socket blocking for everybody", files.Position(n.Pos()))
			}
			if pkg, ok := sel.X.(*ast.Ident); ok {
				if why := banned[pkg.Name][sel.Sel.Name]; why != "" {
					t.Errorf("%s: %s.%s %s", files.Position(n.Pos()), pkg.Name, sel.Sel.Name, why)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A daemon never imports a daemon, and restartd stays small enough to read: the contracts, gRPC, x/sys, and the system bus by
// which units are started.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"retinue.dev/restartd", "retinue.dev/libs/", "retinue.dev/services/api",
		"github.com/coreos/go-systemd/v22/dbus", "github.com/godbus/dbus/v5",
		"google.golang.org/", "golang.org/x/sys/", "golang.org/x/net/", "golang.org/x/text/",
		// go-plugin and what it brings: the plugin room reattaches by it.
		"github.com/hashicorp/go-plugin", "github.com/hashicorp/go-hclog", "github.com/hashicorp/yamux", "github.com/oklog/run",
		"github.com/golang/protobuf/", "github.com/fatih/color", "github.com/mattn/",
	}
	for _, path := range strings.Fields(string(out)) {
		ok := false
		for _, a := range allowed {
			ok = ok || strings.HasPrefix(path, a)
		}
		if !ok {
			t.Errorf("restartd depends on %s", path)
		}
		if path == "retinue.dev/libs/region" {
			t.Errorf("restartd depends on %s: it counts nothing in shared memory", path)
		}
	}
}

// The bank and the table know nothing of gRPC streams and daemons: they are tested without either.
func TestPureRooms(t *testing.T) {
	for room, bans := range map[string][]string{
		"bank":       {"google.golang.org/", "retinue.dev/libs/daemon", "retinue.dev/services/api"},
		"generation": {"google.golang.org/grpc\"", "retinue.dev/libs/daemon", "retinue.dev/restartd/internal/bank"},
		"plugin":     {"retinue.dev/libs/daemon", "retinue.dev/restartd/internal/bank", "retinue.dev/libs/pluginsdk"},
	} {
		paths, err := filepath.Glob("internal/" + room + "/*.go")
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %v", room, err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range f.Imports {
				name, _ := strconv.Unquote(i.Path.Value)
				for _, ban := range bans {
					if strings.HasPrefix(name+"\"", ban) {
						t.Errorf("%s imports %s", path, name)
					}
				}
			}
		}
	}
}
