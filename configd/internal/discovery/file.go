package discovery

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"
)

// maxFile bounds a file of endpoints.
const maxFile = 4 << 20

// parseFile reads "ADDRESS [WEIGHT] [priority=N] [locality=NAME] [KEY=VALUE …]" lines, the rest being metadata; # begins a remark. An error names the line.
func parseFile(text string) ([]*configv1.Endpoint, error) {
	var out []*configv1.Endpoint
	seen := map[string]int{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		address, err := parseAddress(f[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		endpoint := &configv1.Endpoint{Address: address, Weight: 1}
		for i, word := range f[1:] {
			if err := parseWord(endpoint, word, i == 0); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
		slices.SortFunc(endpoint.Metadata, func(a, b *configv1.Metadata) int { return strings.Compare(a.Name, b.Name) })
		if first := seen[address]; first > 0 {
			return nil, fmt.Errorf("line %d: %s is on line %d already", n, address, first)
		}
		seen[address] = n
		if len(out) == maxEndpoints {
			return nil, fmt.Errorf("line %d: more than %d endpoints", n, maxEndpoints)
		}
		out = append(out, endpoint)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no endpoint is in it: it may be half written")
	}
	return out, nil
}

// Bounds of an endpoint, as of those that are written out.
const (
	maxWeight   = 1_000_000
	maxPriority = 127
	maxWords    = 32
	maxLocality = 255
)

// parseWord reads a weight, where one may stand, or NAME=VALUE.
func parseWord(e *configv1.Endpoint, word string, first bool) error {
	name, value, named := strings.Cut(word, "=")
	switch {
	case !named && first:
		weight, err := strconv.ParseUint(word, 10, 32)
		if err != nil || weight < 1 || weight > maxWeight {
			return fmt.Errorf("the weight %q is not 1 to %d", word, maxWeight)
		}
		e.Weight = uint32(weight)
	case !named || name == "":
		return fmt.Errorf("%q is not KEY=VALUE: a line is an address, a weight and such words", word)
	case name == "priority":
		priority, err := strconv.ParseUint(value, 10, 32)
		if err != nil || priority > maxPriority {
			return fmt.Errorf("the priority %q is not 0 to %d", value, maxPriority)
		}
		e.Priority = uint32(priority)
	case name == "locality":
		if e.Locality = value; len(value) > maxLocality {
			return fmt.Errorf("the locality has more than %d bytes", maxLocality)
		}
	case len(e.Metadata) == maxWords:
		return fmt.Errorf("an endpoint has at most %d words of metadata", maxWords)
	case slices.ContainsFunc(e.Metadata, func(m *configv1.Metadata) bool { return m.Name == name }):
		return fmt.Errorf("%s stands twice", name)
	default:
		e.Metadata = append(e.Metadata, &configv1.Metadata{Name: name, Value: value})
	}
	return nil
}

func parseAddress(s string) (string, error) {
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		if p = path.Clean(p); !path.IsAbs(p) || len(p) > 107 {
			return "", fmt.Errorf("%q is not a path of a Unix socket of at most 107 bytes", s)
		}
		return "unix:" + p, nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" || a.Addr().IsUnspecified() {
		return "", fmt.Errorf("%q is neither IP:PORT nor unix:/path", s)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String(), nil
}
