package region

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrFull marks a segment that could not be allocated: the tmpfs is full, or a limit was met.
var ErrFull = errors.New("no room for the stats region")

const fileMode = 0o640 // written by its creator, read by the group

// Allocate gives [offset, offset+length) of a file real blocks, so that no store into its mapping can fault.
// The default is AllocateBlocks; a test puts a full file system in its place.
type Allocate func(fd int, offset, length int64) error

// AllocateBlocks is fallocate.
func AllocateBlocks(fd int, offset, length int64) error {
	for {
		err := unix.Fallocate(fd, 0, offset, length)
		if err == unix.EINTR {
			continue
		}
		return err
	}
}

// createFile makes a new file in the directory dirfd and returns its descriptor, with close-on-exec set.
func createFile(dirfd int, name string) (int, error) {
	fd, err := unix.Openat(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return -1, fmt.Errorf("create %s: %w", name, full(err))
	}
	if err := unix.Fchmod(fd, fileMode); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("create %s: %w", name, err)
	}
	return fd, nil
}

// full marks the errors that mean "no room".
func full(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG), errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

func fileSize(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("%w: not a regular file", ErrLayout)
	}
	return st.Size, nil
}

// mapping is mapped memory that no unmap may surprise: it is unmapped by close only, once.
type mapping struct {
	bytes []byte
}

// mapFile maps [offset, offset+length), which must lie inside the file: a mapping past its end would fault.
func mapFile(fd int, offset int64, length int, write bool) (mapping, error) {
	size, err := fileSize(fd)
	if err != nil {
		return mapping{}, err
	}
	if length <= 0 || offset < 0 || offset+int64(length) > size {
		return mapping{}, fmt.Errorf("%w: %d bytes at %d wanted of a file of %d", ErrLayout, length, offset, size)
	}
	protection := unix.PROT_READ
	if write {
		protection |= unix.PROT_WRITE
	}
	m, err := unix.Mmap(fd, offset, length, protection, unix.MAP_SHARED)
	if err != nil {
		return mapping{}, fmt.Errorf("map %d bytes of the stats region: %w", length, err)
	}
	return mapping{m}, nil
}

func (m *mapping) close() {
	if m.bytes != nil {
		unix.Munmap(m.bytes)
		m.bytes = nil
	}
}

// The lock of a sheet is a classic fcntl lock on byte 0 of a file of its own. Classic, since an open-file-description
// lock would live on in the descriptor that statsd keeps. A process loses a classic lock when it closes any descriptor
// of the file, hence a file that nothing else ever opens in the writer.

// tryLock takes the lock and reports whether it did.
func tryLock(fd int) (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: 0, Len: 1}
	switch err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return false, nil
	default:
		return false, fmt.Errorf("lock a sheet of the stats region: %w", err)
	}
}

func unlock(fd int) {
	lock := unix.Flock_t{Type: unix.F_UNLCK, Whence: unix.SEEK_SET, Start: 0, Len: 1}
	unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock)
}

// lockHolder reports whether some other process holds the lock, and which (0 for one in another pid namespace).
func lockHolder(fd int) (pid int, held bool, err error) {
	lock := unix.Flock_t{Type: unix.F_RDLCK, Whence: unix.SEEK_SET, Start: 0, Len: 1}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lock); err != nil {
		return 0, false, fmt.Errorf("look who holds a sheet of the stats region: %w", err)
	}
	return int(lock.Pid), lock.Type != unix.F_UNLCK, nil
}
