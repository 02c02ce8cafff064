package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// cuts are how many connections were closed by force, by listener and protocol.
type cuts map[string]int

func (n cuts) close(b *bound) {
	for _, f := range b.filters {
		protocol := "http"
		if _, ok := f.(*tunnels); ok {
			protocol = "tcp"
		}
		if closed := f.CloseAll(); closed > 0 {
			n[b.config.Name+" "+protocol] += closed
		}
	}
}

// add sums over the workers.
func (n cuts) add(more cuts) {
	for what, count := range more {
		n[what] += count
	}
}

func (n cuts) total() (sum int) {
	for _, count := range n {
		sum += count
	}
	return sum
}

// String is for people: "db 1 tcp, web 2 http".
func (n cuts) String() string {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(n)) {
		name, protocol, _ := strings.Cut(what, " ")
		parts = append(parts, fmt.Sprintf("%s %d %s", name, n[what], protocol))
	}
	return strings.Join(parts, ", ")
}
