package discovery

import (
	"errors"
	"os"
	"syscall"
)

var errLarge = errors.New("larger than 4 MiB")

func stampOf(info os.FileInfo) stamp {
	s := stamp{size: info.Size(), mtime: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}
