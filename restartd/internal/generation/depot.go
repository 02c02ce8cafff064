package generation

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"retinue.dev/restartd/internal/durable"
)

const (
	binaryName = "proxyd"
	// maxBinary bounds what a caller of Upgrade can make us copy.
	maxBinary = 1 << 30
)

// depot keeps each generation's own copy of the binary: <dir>/N/proxyd. A package that overwrites the installed file
// changes nothing until an upgrade says so, and a crash restarts what ran.
type depot struct{ dir string }

func (d depot) path(n uint64) string {
	return filepath.Join(d.dir, strconv.FormatUint(n, 10), binaryName)
}

// install copies the binary at source for generation n and returns the copy's SHA-256.
func (d depot) install(source string, n uint64) (string, error) {
	f, err := os.Open(source)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 {
		return "", fmt.Errorf("%s is no executable file", source)
	}
	if err := os.MkdirAll(filepath.Dir(d.path(n)), 0o755); err != nil {
		return "", err
	}
	sum := sha256.New()
	// A child that is forked while the copy is open for writing holds it so until its exec: starting the copy meanwhile would be ETXTBSY.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := durable.Copy(d.path(n), io.TeeReader(f, sum), maxBinary, 0o755); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// inherit gives generation n the copy of generation from.
func (d depot) inherit(from, n uint64) error {
	if err := os.MkdirAll(filepath.Dir(d.path(n)), 0o755); err != nil {
		return err
	}
	err := os.Link(d.path(from), d.path(n))
	if errors.Is(err, fs.ErrExist) || err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err = d.install(d.path(from), n) // a file system without hard links
	return err
}

// asideName is beside a generation's binary: it names a snapshot that this generation must not serve.
const asideName = "set-aside"

// setAside tells generation n not to serve a snapshot.
func (d depot) setAside(n uint64, snapshot string) error {
	return durable.Write(filepath.Join(filepath.Dir(d.path(n)), asideName), []byte(snapshot+"\n"), 0o644)
}

// has tells whether generation n's copy is there.
func (d depot) has(n uint64) bool {
	_, err := os.Stat(d.path(n))
	return err == nil
}

// prune removes the copies that keep does not name.
func (d depot) prune(keep map[uint64]bool) error {
	list, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var failed error
	for _, e := range list {
		if n, bad := strconv.ParseUint(e.Name(), 10, 64); bad == nil && !keep[n] {
			failed = errors.Join(failed, os.RemoveAll(filepath.Join(d.dir, e.Name())))
		}
	}
	return errors.Join(err, failed)
}

// last is the highest generation that left a copy: numbers are never used twice, not even when the ledger is lost.
func (d depot) last() uint64 {
	list, _ := os.ReadDir(d.dir)
	var top uint64
	for _, e := range list {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			top = max(top, n)
		}
	}
	return top
}
