package region

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// sharedMemory is where regions are whose run directory is on a disk.
const sharedMemory = "/dev/shm"

// placePrefix begins the names of regions there; the file directoryFile in each tells whose it is.
const (
	placePrefix   = "retinue-"
	directoryFile = "directory"
	ownerFile     = "owner" // locked by the process that owns the region
)

// Find returns the directory of the region of a run directory: <runDir>/region if that is on tmpfs (or is there
// already), else one in /dev/shm. It creates nothing.
func Find(runDir string) (string, error) { return find(runDir, sharedMemory) }

func find(runDir, shm string) (string, error) {
	whole, err := filepath.Abs(runDir)
	if err == nil {
		whole, err = filepath.EvalSymlinks(whole)
	}
	if err != nil {
		return "", fmt.Errorf("find the stats region of %s: %w", runDir, err)
	}
	beside := filepath.Join(whole, "region")
	if _, err := os.Lstat(beside); err == nil || onTmpfs(whole) || !onTmpfs(shm) {
		return beside, nil
	}
	sum := sha256.Sum256([]byte(whole))
	return filepath.Join(shm, placePrefix+hex.EncodeToString(sum[:8])), nil
}

func onTmpfs(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC)
}

// Place is Find for the region's owner: the directory exists afterwards, belongs to this user and is nobody else's to
// write. Regions of this user in /dev/shm whose run directory has gone are removed.
func Place(runDir string) (string, error) { return place(runDir, sharedMemory) }

func place(runDir, shm string) (string, error) {
	dir, err := find(runDir, shm)
	if err != nil {
		return "", err
	}
	if filepath.Dir(dir) == shm {
		sweepPlaces(shm, dir)
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make the directory of the stats region: %w", err)
	}
	var st, run unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", fmt.Errorf("look at the directory of the stats region %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 && filepath.Dir(dir) == shm {
		return "", fmt.Errorf("the directory of the stats region %s is somebody else's (uid %d, mode %o): remove it, or make %s to have the region there",
			dir, st.Uid, st.Mode&0o7777, filepath.Join(runDir, "region"))
	}
	if filepath.Dir(dir) != shm {
		return dir, nil
	}
	// Readers of the suite's group may read here as they may in the run directory; without the right to, they may not.
	if unix.Stat(runDir, &run) == nil && run.Gid != st.Gid {
		_ = os.Chown(dir, -1, int(run.Gid))
	}
	whole, err := filepath.Abs(runDir)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, directoryFile), []byte(whole), fileMode)
	}
	if err != nil {
		return "", fmt.Errorf("note whose stats region %s is: %w", dir, full(err))
	}
	return dir, nil
}

// sweepPlaces removes what suites in temporary directories have left in memory.
func sweepPlaces(shm, own string) {
	names, err := readNames(shm)
	if err != nil {
		return
	}
	for _, name := range names {
		dir := filepath.Join(shm, name)
		var st unix.Stat_t
		if !strings.HasPrefix(name, placePrefix) || dir == own || unix.Lstat(dir, &st) != nil ||
			st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
			continue
		}
		whose, err := os.ReadFile(filepath.Join(dir, directoryFile))
		if err != nil {
			continue
		}
		if _, err := os.Lstat(string(whose)); errors.Is(err, os.ErrNotExist) && !owned(dir) {
			os.RemoveAll(dir)
		}
	}
}

// owned reports whether a living process other than this one owns the region in dir.
func owned(dir string) bool {
	fd, err := unix.Open(filepath.Join(dir, ownerFile), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, held, err := lockHolder(fd)
	return err != nil || held
}
