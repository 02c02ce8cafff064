package plugintest_test

import (
	"os/exec"
	"testing"

	"retinue.dev/libs/pluginsdk/plugintest"
)

// TestPython holds the plugin that is written without our SDK to the same suite.
func TestPython(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("there is no python3")
	}
	const program = "../../../examples/plugins/python-tag/tag.py"
	plugintest.Conformance(t, plugintest.Program{Path: program, Config: `{"tag": "snake"}`})
	t.Run("replay", func(t *testing.T) {
		plugintest.Replay(t, program, "../../../examples/plugins/python-tag/testdata/*.json")
	})
}
