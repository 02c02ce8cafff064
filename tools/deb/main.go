// Command deb builds the Debian package from services/packaging/nfpm.yaml: `deb VERSION OUTPUT-DIRECTORY`, from the root of
// the repository, after make build.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: deb VERSION OUTPUT-DIRECTORY")
		os.Exit(2)
	}
	path, err := build(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "deb:", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

func build(version, into string) (string, error) {
	config, err := nfpm.ParseFileWithEnvMapping("services/packaging/nfpm.yaml", func(name string) string {
		return map[string]string{"VERSION": version, "ARCH": runtime.GOARCH}[name]
	})
	if err != nil {
		return "", err
	}
	info, err := config.Get("deb")
	if err != nil {
		return "", err
	}
	info = nfpm.WithDefaults(info)
	if err := os.MkdirAll(into, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(into, deb.Default.ConventionalFileName(info))
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	if err := deb.Default.Package(info, f); err != nil {
		return "", err
	}
	return path, f.Close()
}
