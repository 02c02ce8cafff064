package plugin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// copied is a generation's own copy of a program. The restart after a crash takes the same file under another name, as long as nobody wrote to the
// program meanwhile: else some 20 MB would be read, hashed and written each time a plugin crashes, on processors that the traffic needs.
type copied struct {
	path   string
	sum    string // SHA-256, hexadecimal
	from   string
	source identity // of from when it was copied
	copy   identity // without its time of change: another name changes that
}

// identity is what stays of a file for as long as nobody writes to it.
type identity struct {
	device, inode     uint64
	size              int64
	modified, changed syscall.Timespec
}

func identityOf(st os.FileInfo) identity {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{device: s.Dev, inode: s.Ino, size: s.Size, modified: s.Mtim, changed: s.Ctim}
}

func (i identity) unnamed() identity {
	i.changed = syscall.Timespec{}
	return i
}

// copyProgram gives a generation its own copy: another name of the last one where that still is what would be copied.
func copyProgram(from, to string, last copied) (copied, error) {
	in, err := os.Open(from)
	if err != nil {
		return copied{}, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return copied{}, err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 {
		return copied{}, fmt.Errorf("%s is no executable file", from)
	}
	_ = os.Remove(to) // a leftover; it may be one of two names
	c := copied{path: to, from: from, source: identityOf(st)}
	if last.from == from && last.source == c.source {
		if st, err := os.Stat(last.path); err == nil && identityOf(st).unnamed() == last.copy && os.Link(last.path, to) == nil {
			c.sum, c.copy = last.sum, last.copy
			return c, nil
		}
	}
	// A child that is forked while the copy is open for writing holds it so until its exec, and who starts the copy meanwhile is told ETXTBSY.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return copied{}, err
	}
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, hash), in)
	if err = errors.Join(err, out.Close()); err != nil {
		return copied{}, err
	}
	if st, err = os.Stat(to); err != nil {
		return copied{}, err
	}
	c.sum, c.copy = hex.EncodeToString(hash.Sum(nil)), identityOf(st).unnamed()
	return c, nil
}
