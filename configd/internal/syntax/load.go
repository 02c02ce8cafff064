// Package syntax owns the way from files to syntax trees: which files belong to a configuration, how large they may
// be, and how deep an expression may go before the recursive parsers behind it are asked to read it.
package syntax

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"

	"retinue.dev/configd/internal/diag"
)

// Bounds of one configuration.
const (
	MaxFileBytes  = 16 << 20
	MaxTotalBytes = 64 << 20
	MaxFiles      = 4096
)

// Source is one file as read. Name is what diagnostics show.
type Source struct {
	Name string
	Data []byte
}

// Files is a parsed configuration, files in the order of their names.
type Files struct {
	Dir     string            // where file() looks
	Bodies  []hcl.Body        // one a file that could be parsed
	Sources map[string][]byte // by the name that ranges carry
	root    string            // prefix of names that Relative removes
}

// Relative gives a file's name below the configuration's own directory, so that the same files at another place
// compile to the same snapshot.
func (f *Files) Relative(name string) string {
	if rel, ok := strings.CutPrefix(name, f.root); ok {
		return rel
	}
	return name
}

// IsJSON tells the JSON form by the file's name.
func IsJSON(name string) bool { return strings.HasSuffix(name, ".json") }

// Load reads and parses path: a file, or a directory whose .hcl, .hcl.json and .json files are taken in the order of
// their names (hidden files and subdirectories are not). Whatever could be parsed is returned beside the diagnostics.
func Load(path string, diags *diag.List) *Files {
	sources, dir := read(path, diags)
	root := ""
	if len(sources) > 0 {
		root = strings.TrimSuffix(sources[0].Name, filepath.Base(sources[0].Name))
	}
	files := Parse(sources, diags)
	files.Dir, files.root = dir, root
	return files
}

// Parse parses sources that are already in memory.
func Parse(sources []Source, diags *diag.List) *Files {
	files := &Files{Sources: make(map[string][]byte, len(sources)), Dir: "."}
	for _, s := range sources {
		files.Sources[s.Name] = s.Data
		if body := parse(s, diags); body != nil {
			files.Bodies = append(files.Bodies, body)
		}
	}
	return files
}

func parse(s Source, diags *diag.List) hcl.Body {
	if IsJSON(s.Name) {
		if !checkJSON(s, diags) {
			return nil
		}
		f, found := hcljson.Parse(s.Data, s.Name)
		diags.FromHCL(diag.Syntax, found)
		if f == nil || found.HasErrors() {
			return nil
		}
		return f.Body
	}
	if !checkNative(s, diags) {
		return nil
	}
	f, found := hclsyntax.ParseConfig(s.Data, s.Name, hcl.InitialPos)
	diags.FromHCL(diag.Syntax, found)
	if f == nil || found.HasErrors() {
		return nil
	}
	return f.Body
}

func read(path string, diags *diag.List) ([]Source, string) {
	info, err := os.Stat(path)
	if err != nil {
		diags.Report(diag.FileRead, hcl.Range{}, "Cannot read the configuration", "%s. Give the file or the directory with --config.", reason(path, err))
		return nil, "."
	}
	if !info.IsDir() {
		data, err := ReadFile(path, MaxFileBytes)
		if err != nil {
			reportRead(path, err, diags)
			return nil, "."
		}
		return []Source{{path, data}}, filepath.Dir(path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		diags.Report(diag.FileRead, hcl.Range{}, "Cannot read the configuration directory", "%s.", reason(path, err))
		return nil, "."
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || e.IsDir() || (!strings.HasSuffix(name, ".hcl") && !IsJSON(name)) {
			continue
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		diags.Report(diag.NoFiles, hcl.Range{}, "No configuration", "%s holds no .hcl, .hcl.json or .json file.", path)
		return nil, path
	}
	if len(names) > MaxFiles {
		diags.Report(diag.FileTooLarge, hcl.Range{}, "Too many files", "%s holds %d configuration files; at most %d are read.", path, len(names), MaxFiles)
		return nil, path
	}
	slices.Sort(names)
	var sources []Source
	total := 0
	for _, name := range names {
		full := filepath.Join(path, name)
		data, err := ReadFile(full, MaxFileBytes)
		if err != nil {
			reportRead(full, err, diags)
			continue
		}
		if total += len(data); total > MaxTotalBytes {
			diags.Report(diag.FileTooLarge, hcl.Range{}, "Too much configuration", "The files of %s are together larger than %d MiB.", path, MaxTotalBytes>>20)
			return nil, path
		}
		sources = append(sources, Source{full, data})
	}
	return sources, path
}

// ErrTooLarge is returned by ReadFile for a file above its bound.
var ErrTooLarge = errors.New("file too large")

// ReadFile reads a regular file of at most limit bytes. Anything else (a FIFO, a device) is refused without waiting
// for it.
func ReadFile(path string, limit int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrTooLarge, path, limit)
	}
	return data, nil
}

func reportRead(path string, err error, diags *diag.List) {
	if errors.Is(err, ErrTooLarge) {
		diags.Report(diag.FileTooLarge, hcl.Range{}, "File too large", "%s is larger than %d MiB.", path, MaxFileBytes>>20)
		return
	}
	diags.Report(diag.FileRead, hcl.Range{}, "Cannot read a file", "%s.", reason(path, err))
}

func reason(path string, err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Sprintf("%s: %v", path, err)
}
