package serve

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"retinue.dev/libs/settings"
	configv1 "retinue.dev/services/api/config/v1"
	filterv1 "retinue.dev/services/api/filter/v1"

	"retinue.dev/configd/internal/compile"
)

// maxProgram bounds what is read of a program to know its hash.
const maxProgram = 1 << 30

// schemas looks plugins up among those that the suite below dir has started, by the hash of their program: the one that is pinned, or
// that of the file.
func schemas(dir string) compile.Schemas {
	cache := settings.InRunDir(dir)
	var programs []string
	if self, err := os.Executable(); err == nil {
		programs = append(programs, filepath.Join(filepath.Dir(self), "plugins"))
	}
	programs = append(programs, "/usr/lib/retinue/plugins") // as restartd looks for them
	return func(p *configv1.Plugin) (*filterv1.Schema, error) {
		sum := p.GetSha256()
		if sum == "" {
			var err error
			if sum, err = programSum(p.GetCommand(), programs); err != nil {
				return nil, fmt.Errorf("what it takes is not known here: %w", err)
			}
		}
		s, err := cache.Load(sum)
		if errors.Is(err, settings.ErrUnknown) {
			return nil, fmt.Errorf("what it takes is not known: no suite below %s has started this program yet", dir)
		}
		return s, err
	}
}

func programSum(command string, dirs []string) (string, error) {
	paths := []string{command}
	if !filepath.IsAbs(command) {
		paths = paths[:0]
		for _, dir := range dirs {
			paths = append(paths, filepath.Join(dir, command))
		}
	}
	for _, path := range paths {
		st, err := os.Stat(path)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		h := sha256.New()
		_, err = io.Copy(h, io.LimitReader(f, maxProgram))
		return hex.EncodeToString(h.Sum(nil)), err
	}
	return "", fmt.Errorf("there is no program %q", command)
}
