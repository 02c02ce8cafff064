package settings

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

const (
	maxSchema  = 1 << 20
	maxSchemas = 256
	suffix     = ".schema"
)

// ErrUnknown: no program with that hash has been started here.
var ErrUnknown = errors.New("its schema is not known")

// Cache keeps schemas by the SHA-256 of the program that they came from, in hexadecimal, one file each in a directory. restartd
// writes it, whoever may read the directory reads.
type Cache struct{ Dir string }

// InRunDir is the cache of a suite.
func InRunDir(dir string) Cache { return Cache{filepath.Join(dir, "schemas")} }

func (c Cache) path(sum string) (string, error) {
	if b, err := hex.DecodeString(sum); err != nil || len(b) != 32 {
		return "", fmt.Errorf("%q is no SHA-256", sum)
	}
	return filepath.Join(c.Dir, sum+suffix), nil
}

// Load returns what was stored, or ErrUnknown.
func (c Cache) Load(sum string) (*filterv1.Schema, error) {
	path, err := c.path(sum)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrUnknown
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSchema+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSchema {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxSchema)
	}
	s := &filterv1.Schema{}
	if err := proto.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Store keeps a schema; of too many the oldest go. A nil schema, which takes nothing, is kept too.
func (c Cache) Store(sum string, s *filterv1.Schema) error {
	path, err := c.path(sum)
	if err != nil {
		return err
	}
	b, err := proto.Marshal(s)
	if err != nil {
		return err
	}
	if len(b) > maxSchema {
		return fmt.Errorf("a schema of %d bytes; at most %d are kept", len(b), maxSchema)
	}
	if err := os.MkdirAll(c.Dir, 0o750); err != nil {
		return err
	}
	// Several plugins of one program are stored at the same time.
	fresh, err := os.CreateTemp(c.Dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = fresh.Write(b)
	if err = errors.Join(err, fresh.Chmod(0o640), fresh.Close()); err == nil {
		err = os.Rename(fresh.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh.Name()))
	}
	return c.prune()
}

func (c Cache) prune() error {
	paths, err := filepath.Glob(filepath.Join(c.Dir, "*"+suffix))
	if err != nil || len(paths) <= maxSchemas {
		return err
	}
	age := map[string]int64{}
	for _, p := range paths {
		if st, err := os.Lstat(p); err == nil {
			age[p] = st.ModTime().UnixNano()
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return cmp.Compare(age[a], age[b]) })
	for _, p := range paths[:len(paths)-maxSchemas] {
		err = errors.Join(err, os.Remove(p))
	}
	return err
}
