package main

import (
	"context"
	_ "embed"
	"flag"
	"os"

	"retinue.dev/libs/daemon"
	"retinue.dev/proxyd/internal/control"
)

//go:embed doc.go
var manual string

func main() {
	var generation uint64
	var preflight bool
	var report string
	os.Exit(daemon.Main(daemon.Spec{
		Name:    "proxyd",
		Several: true,
		Manual:  daemon.Manual(manual),
		Flags: func(f *flag.FlagSet) {
			f.Uint64Var(&generation, "generation", 0, "number that restartd gave this process")
			f.StringVar(&report, "preflight-report", "", "with --preflight: write what is said to this `file` instead of the standard output")
			f.BoolVar(&preflight, "preflight", false, "say what this binary is, load the running snapshot without sockets, and exit")
		},
		Early: func(ctx context.Context, env *daemon.Env) (bool, error) {
			if !preflight {
				return false, nil
			}
			return true, control.PreflightTo(ctx, env, report)
		},
		Test: func(ctx context.Context, env *daemon.Env) error { return control.Preflight(ctx, env, os.Stdout) },
		New:  func(_ context.Context, env *daemon.Env) (daemon.Server, error) { return control.New(env, generation) },
	}))
}
