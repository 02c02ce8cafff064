package main

import (
	"testing"

	"retinue.dev/libs/pluginsdk/plugintest"
)

func TestPlugin(t *testing.T) {
	program := plugintest.Build(t, ".")
	plugintest.Conformance(t, plugintest.Program{Path: program, Config: `{"header": "x-stamp"}`})
	plugintest.Replay(t, program, "testdata/*.json")
}

func BenchmarkCall(b *testing.B) {
	plugintest.Benchmark(b, plugintest.Program{Path: plugintest.Build(b, "."), Config: `{"header": "x-stamp"}`})
}
