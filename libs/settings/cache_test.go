package settings

import (
	"os"
	"strings"
	"sync"
	"testing"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// TestStoreTogether: plugins of one program that start together store the same schema.
func TestStoreTogether(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	sum := strings.Repeat("ab", 32)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if err := c.Store(sum, &filterv1.Schema{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if s, err := c.Load(sum); err != nil || s == nil {
		t.Errorf("%v, %v", s, err)
	}
	if list, err := os.ReadDir(c.Dir); err != nil || len(list) != 1 {
		t.Errorf("%d files, %v; want the schema alone", len(list), err)
	}
}
