package main

import (
	"testing"

	"retinue.dev/libs/pluginsdk/plugintest"
)

func TestPlugin(t *testing.T) {
	program := plugintest.Build(t, ".")
	plugintest.Conformance(t, plugintest.Program{Path: program, Config: `{"keys": {}}`})
	plugintest.Replay(t, program, "testdata/*.json")
}
