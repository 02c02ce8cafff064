package main

import (
	_ "embed"
	"os"

	"retinue.dev/configd/internal/serve"
	"retinue.dev/libs/daemon"
)

//go:embed doc.go
var source string

func main() {
	os.Exit(daemon.Main(serve.Spec(daemon.Manual(source))))
}
