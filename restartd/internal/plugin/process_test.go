package plugin

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// TestCopiesCanBeStarted: a copy can be executed as soon as it is made, whatever else is started meanwhile: a child between its fork and its exec
// must not hold the copy open for writing.
func TestCopiesCanBeStarted(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Skip("there is no true(1)")
	}
	dir := t.TempDir()
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 25 {
				to := filepath.Join(dir, fmt.Sprintf("%d-%d", worker, i))
				if _, err := copyProgram(program, to, copied{}); err != nil {
					t.Error(err)
					return
				}
				if err := exec.Command(to).Run(); err != nil {
					t.Errorf("a fresh copy: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}
