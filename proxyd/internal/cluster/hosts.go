package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	configv1 "retinue.dev/services/api/config/v1"
)

// maxPriority is Envoy's.
const maxPriority = 127

// Host is one endpoint. Two host sets share the Host of an address that both name with the same words, so that what a worker
// keeps for it (its idle connections) survives. A logical host is known by its name, and shared whatever its addresses are.
type Host struct {
	Address  string // as configured: "127.0.0.1:80" or "unix:/path"; the "name:port" of a logical one
	Weight   uint64
	Priority int
	Locality string
	Metadata []Label        // by name
	IP       netip.AddrPort // invalid for a Unix socket and a logical host
	Path     string         // Unix socket path, "" for TCP

	// places is where a logical host is now, in the order of trying; nil for others. Main publishes a list, which never changes;
	// any thread reads it when it connects. What is found by DNS comes into force so even if the snapshot that it came with does not.
	places   atomic.Pointer[[]netip.AddrPort]
	logical  bool
	outcomes []cell      // by worker; none where nobody observes
	fails    atomic.Bool // an answer said so, and nobody has taken note yet
}

// Label is one word of metadata.
type Label struct{ Name, Value string }

// hashKey is the name of the metadata that stands for the address in consistent hashes (Envoy's).
const hashKey = "hash_key"

// key is what consistent hashes know the host by.
func (h *Host) key() string {
	if v, ok := h.label(hashKey); ok && v != "" {
		return v
	}
	return h.Address
}

// Places is where a logical host is now, in the order of trying; nil for any other. The same pointer is the same list.
func (h *Host) Places() *[]netip.AddrPort { return h.places.Load() }

// Logical tells that the host is known by name while its addresses change.
func (h *Host) Logical() bool { return h.logical }

// ServerName is what the certificate of a server is for where the configuration names nothing: a logical host's name, else the IP;
// "" for a Unix socket.
func (h *Host) ServerName() string {
	switch {
	case h.logical:
		return h.Address[:strings.LastIndexByte(h.Address, ':')]
	case h.IP.IsValid():
		return h.IP.Addr().Unmap().String()
	}
	return ""
}

// Has tells whether the host's metadata has all of these values.
func (h *Host) Has(labels []Label) bool {
	for i := range labels {
		if v, ok := h.label(labels[i].Name); !ok || v != labels[i].Value {
			return false
		}
	}
	return true
}

func (h *Host) label(name string) (string, bool) {
	for _, l := range h.Metadata {
		if l.Name == name {
			return l.Value, true
		}
	}
	return "", false
}

// BuildHosts makes the members of a cluster out of endpoints, sharing hosts with those that it has.
func (c *Cluster) BuildHosts(endpoints []*configv1.Endpoint) (*HostSet, error) {
	return buildHosts(c.Rule, endpoints, c.Hosts)
}

// buildHosts makes a host set in which everybody is well, sharing hosts with previous (nil: none).
func buildHosts(rule *Rule, endpoints []*configv1.Endpoint, previous *HostSet) (*HostSet, error) {
	known := map[string]*Host{}
	if previous != nil {
		for _, h := range previous.Hosts {
			known[h.Address] = h
		}
	}
	hosts := make([]*Host, 0, len(endpoints))
	seen := make(map[string]bool, len(endpoints))
	for i, e := range endpoints {
		host, err := buildHost(e)
		if err != nil {
			return nil, fmt.Errorf("endpoints[%d]: %w", i, err)
		}
		if seen[host.Address] {
			return nil, fmt.Errorf("endpoints[%d]: %s is named twice: give it one entry with a weight", i, host.Address)
		}
		seen[host.Address] = true
		if old := known[host.Address]; old != nil && old.same(host) {
			if old.logical && !slices.Equal(*old.Places(), *host.Places()) {
				old.places.Store(host.Places())
			}
			host = old
		}
		hosts = append(hosts, host)
	}
	return arrange(rule, hosts, nil), nil
}

// same tells whether two hosts of an address say the same.
func (h *Host) same(other *Host) bool {
	return h.logical == other.logical && h.Weight == other.Weight && h.Priority == other.Priority && h.Locality == other.Locality && slices.Equal(h.Metadata, other.Metadata)
}

func buildHost(e *configv1.Endpoint) (*Host, error) {
	h, err := parseHost(e.GetAddress())
	if err != nil {
		return nil, err
	}
	if e.GetName() != "" {
		if h, err = logicalHost(e.GetName(), h.IP, e.GetAdditionalAddresses()); err != nil {
			return nil, err
		}
	}
	if h.Weight = uint64(max(e.GetWeight(), 1)); h.Weight > maxWeight {
		return nil, fmt.Errorf("weight %d is above %d", h.Weight, maxWeight)
	}
	if e.GetPriority() > maxPriority {
		return nil, fmt.Errorf("priority %d is above %d", e.GetPriority(), maxPriority)
	}
	h.Priority, h.Locality = int(e.GetPriority()), e.GetLocality()
	for _, m := range e.GetMetadata() {
		h.Metadata = append(h.Metadata, Label{m.GetName(), m.GetValue()})
	}
	return h, nil
}

// maxPlaces is how many addresses a logical host has at most.
const maxPlaces = 16

// logicalHost makes a host that is known by name, out of the addresses to try.
func logicalHost(name string, first netip.AddrPort, more []string) (*Host, error) {
	host, port, _ := strings.Cut(name, ":")
	if host == "" || port == "" || strings.Contains(port, ":") || len(name) > 300 {
		return nil, fmt.Errorf("%q is no name:port", name)
	}
	if !first.IsValid() {
		return nil, fmt.Errorf("%s: only IP addresses stand behind a name", name)
	}
	if len(more) >= maxPlaces {
		return nil, fmt.Errorf("%s has %d addresses: at most %d are tried", name, len(more)+1, maxPlaces)
	}
	places := []netip.AddrPort{first}
	for _, a := range more {
		h, err := parseHost(a)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if !h.IP.IsValid() || slices.Contains(places, h.IP) {
			return nil, fmt.Errorf("%s: %s is no further IP address", name, a)
		}
		places = append(places, h.IP)
	}
	h := &Host{Address: name, logical: true}
	h.places.Store(&places)
	return h, nil
}

func parseHost(address string) (*Host, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if path == "" || len(path) > 107 {
			return nil, fmt.Errorf("%q: a Unix socket path has 1 to 107 bytes", address)
		}
		return &Host{Address: address, Path: path}, nil
	}
	ip, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("%q is neither IP:port nor unix:/path", address)
	}
	if ip.Port() == 0 {
		return nil, errors.New(address + ": port 0 cannot be connected to")
	}
	return &Host{Address: address, IP: ip}, nil
}
