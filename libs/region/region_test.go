package region_test

import (
	"testing"

	"retinue.dev/libs/region/regiontest"
)

func TestMain(m *testing.M) { regiontest.Main(m) }
