// Command retinue is the front door of the suite: run, check, reload, status, upgrade.
package main

import (
	"os"

	"retinue.dev/services/retinue/internal/command"
)

func main() { os.Exit(command.Main(os.Args[1:])) }
