package secret

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"
)

const (
	// rotateEvery is how long a key seals session tickets; keysKept keys open them, so that a ticket lives at least a day.
	rotateEvery = 12 * time.Hour
	keysKept    = 3
	keySize     = 32
)

// Keeper keeps the secrets that were delivered last, with the keys of session tickets, in a file of mode 0600: tickets outlive a
// restart of configd, and a start with a broken certificate serves the one before. Any goroutine.
type Keeper struct {
	path string

	mu     sync.Mutex
	kept   *configv1.Secrets
	rotate time.Time // when the newest ticket key was made
	// Lost says why the file could not be read; its secrets are made anew.
	Lost error
}

// OpenKeeper reads the file, or begins anew when there is none.
func OpenKeeper(dir string, now time.Time) *Keeper {
	k := &Keeper{path: filepath.Join(dir, "secrets.pb"), kept: &configv1.Secrets{}}
	info, err := os.Stat(k.path)
	var raw []byte
	if err == nil {
		raw, err = os.ReadFile(k.path)
	}
	if err == nil {
		err = k.read(raw)
		k.rotate = info.ModTime()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.Lost = fmt.Errorf("%s: %w", k.path, err)
	}
	if len(k.kept.GetTicketKeys()) == 0 {
		k.kept.TicketKeys = [][]byte{newKey()}
		k.rotate = now
	}
	return k
}

func (k *Keeper) read(raw []byte) error {
	if len(raw) < sha256.Size || sha256.Sum256(raw[sha256.Size:]) != [sha256.Size]byte(raw[:sha256.Size]) {
		return errors.New("it is damaged and left aside")
	}
	kept := &configv1.Secrets{}
	if err := proto.Unmarshal(raw[sha256.Size:], kept); err != nil {
		return err
	}
	kept.TicketKeys = slices.DeleteFunc(kept.TicketKeys, func(key []byte) bool { return len(key) != keySize })
	k.kept = kept
	return nil
}

func newKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	return key
}

// Kept is what was delivered last.
func (k *Keeper) Kept() *configv1.Secrets {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept
}

// Complete gives secrets the ticket keys.
func (k *Keeper) Complete(s *configv1.Secrets) *configv1.Secrets {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.TicketKeys = k.kept.GetTicketKeys()
	return s
}

// Rotate makes a new ticket key when the newest one has served its time, and tells whether it did.
func (k *Keeper) Rotate(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now.Sub(k.rotate) < rotateEvery {
		return false
	}
	next := proto.CloneOf(k.kept)
	next.TicketKeys = slices.Insert(next.TicketKeys, 0, newKey())
	next.TicketKeys = next.TicketKeys[:min(len(next.TicketKeys), keysKept)]
	k.kept, k.rotate = next, now
	return true
}

// Keep writes what is delivered now. The file's time stays that of the newest ticket key.
func (k *Keeper) Keep(s *configv1.Secrets) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = s
	body, err := proto.Marshal(s)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	file, err := os.CreateTemp(filepath.Dir(k.path), "secrets.*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(append(sum[:], body...))
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Chtimes(file.Name(), k.rotate, k.rotate); err != nil {
		return err
	}
	return os.Rename(file.Name(), k.path)
}
