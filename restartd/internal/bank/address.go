package bank

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxUnixPath is what sun_path holds with its terminating NUL.
const maxUnixPath = 107

// parsed is a listener address taken apart. Exactly one of path and ip is set.
type parsed struct {
	path string
	ip   netip.AddrPort
	zone uint32
}

func parse(address string) (parsed, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		switch {
		case !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/":
			return parsed{}, fmt.Errorf("%q is no absolute, clean path: write unix:/run/name.sock", path)
		case strings.ContainsRune(path, 0):
			return parsed{}, errors.New("a socket path cannot hold a NUL byte")
		case len(path) > maxUnixPath:
			return parsed{}, fmt.Errorf("the path has %d bytes, a unix socket address holds %d: choose a shorter one", len(path), maxUnixPath)
		}
		return parsed{path: path}, nil
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return parsed{}, fmt.Errorf("%q is neither IP:port nor unix:/path", address)
	}
	// An IPv4-mapped address would be a second spelling of one socket, and IPV6_V6ONLY refuses to bind it.
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	p := parsed{ip: ap}
	if zone := ap.Addr().Zone(); zone != "" {
		nic, err := net.InterfaceByName(zone)
		if err != nil {
			return parsed{}, fmt.Errorf("no network interface %q", zone)
		}
		p.zone = uint32(nic.Index)
	}
	return p, nil
}

func (p parsed) shared() bool { return p.path != "" }

func (p parsed) port() uint16 { return p.ip.Port() }

func (p parsed) withPort(port uint16) parsed {
	p.ip = netip.AddrPortFrom(p.ip.Addr(), port)
	return p
}

func (p parsed) String() string {
	if p.path != "" {
		return "unix:" + p.path
	}
	return p.ip.String()
}

func (p parsed) family() int {
	switch {
	case p.path != "":
		return unix.AF_UNIX
	case p.ip.Addr().Is4():
		return unix.AF_INET
	default:
		return unix.AF_INET6
	}
}

func (p parsed) sockaddr() unix.Sockaddr {
	switch {
	case p.path != "":
		return &unix.SockaddrUnix{Name: p.path}
	case p.ip.Addr().Is4():
		return &unix.SockaddrInet4{Port: int(p.ip.Port()), Addr: p.ip.Addr().As4()}
	default:
		return &unix.SockaddrInet6{Port: int(p.ip.Port()), Addr: p.ip.Addr().As16(), ZoneId: p.zone}
	}
}

// boundTo returns the address that getsockname tells.
func boundTo(fd int) (parsed, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return parsed{}, fmt.Errorf("getsockname: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrUnix:
		return parsed{path: sa.Name}, nil
	case *unix.SockaddrInet4:
		return parsed{ip: netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))}, nil
	case *unix.SockaddrInet6:
		return parsed{ip: netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), zone: sa.ZoneId}, nil
	default:
		return parsed{}, fmt.Errorf("a socket of family %T", sa)
	}
}

// answers tells whether a socket bound to b is what address p asks for. Port 0 asks for any port.
func (p parsed) answers(b parsed) bool {
	if p.path != "" || b.path != "" {
		return p.path == b.path
	}
	return p.ip.Addr().WithZone("") == b.ip.Addr().WithZone("") && p.zone == b.zone && (p.port() == 0 || p.port() == b.port())
}

// key names one address of one listener across snapshots and restarts. An address with a port is its own key, so that
// it may move to another listener without being closed; one with port 0 belongs to its listener's n-th such address.
func key(listener string, occurrence int, p parsed) string {
	if p.path == "" && p.port() == 0 {
		return escape(fmt.Sprintf("%s#%d=%s", listener, occurrence, p))
	}
	return escape(p.String())
}

const storePrefix = "socket/"

// maxEscaped leaves room for the prefix and the shard within the 255 characters of a descriptor's name.
const maxEscaped = 200

// storeName names a shard in the descriptor store: printable ASCII without the colon that separates LISTEN_FDNAMES.
func storeName(key string, shard int) string {
	return storePrefix + key + "/" + strconv.Itoa(shard)
}

// splitStoreName undoes storeName.
func splitStoreName(name string) (key string, shard int, ok bool) {
	rest, ok := strings.CutPrefix(name, storePrefix)
	if !ok {
		return "", 0, false
	}
	i := strings.LastIndexByte(rest, '/')
	if i <= 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(rest[i+1:])
	if err != nil || n < 0 || n >= maxShards || strconv.Itoa(n) != rest[i+1:] {
		return "", 0, false
	}
	return rest[:i], n, true
}

// escape keeps a key within a descriptor name's characters and length. It is injective up to SHA-256: two keys never
// share a name.
func escape(key string) string {
	var b strings.Builder
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(".-_/[]#=", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if b.Len() <= maxEscaped {
		return b.String()
	}
	sum := sha256.Sum256([]byte(key))
	return b.String()[:maxEscaped-66] + "%h" + hex.EncodeToString(sum[:])
}
