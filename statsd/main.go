package main

import (
	_ "embed"
	"os"

	"retinue.dev/libs/daemon"

	"retinue.dev/statsd/internal/server"
)

//go:embed doc.go
var manual string

func main() {
	os.Exit(daemon.Main(daemon.Spec{
		Name:    "statsd",
		Summary: "owns the shared-memory stats region, serves metrics and the dashboard",
		Manual:  daemon.Manual(manual),
		Test:    server.Test,
		New:     server.New,
	}))
}
