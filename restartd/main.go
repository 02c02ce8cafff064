package main

import (
	"context"
	_ "embed"
	"os"

	"retinue.dev/libs/daemon"

	"retinue.dev/restartd/internal/plugin"
	"retinue.dev/restartd/internal/service"
)

//go:embed doc.go
var manual string

func main() {
	var config service.Config
	os.Exit(daemon.Main(daemon.Spec{
		Name:    "restartd",
		Summary: "holds listening sockets and the generations of proxyd",
		Manual:  daemon.Manual(manual),
		Flags:   config.Flags,
		Early: func(context.Context, *daemon.Env) (bool, error) {
			if config.Become == "" {
				return false, nil
			}
			return true, plugin.Exec(config.Become)
		},
		Test: func(context.Context, *daemon.Env) error { return service.Check(config) },
		New: func(_ context.Context, env *daemon.Env) (daemon.Server, error) {
			return service.New(env, config)
		},
	}))
}
