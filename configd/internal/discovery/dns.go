package discovery

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	configv1 "retinue.dev/services/api/config/v1"
)

// Bounds of one look-up.
const (
	maxAnswer    = 64 << 10 // bytes of a reply by TCP
	maxEndpoints = 10_000
	udpSize      = 1232 // what passes everywhere without fragments
	tryTime      = time.Second
)

// errNothing is an answer without endpoints. It counts as a failure: it is more often a name server in trouble than somebody's
// wish to have no servers.
var errNothing = errors.New("the name has no such records")

// resolver looks names up. It asks name servers itself, since the standard library does not tell how long an answer holds.
type resolver struct {
	resolvConf, hosts string // files of the system

	// routed tells whether packets to an address have a way out of this machine.
	routed func(netip.Addr) bool
}

// newResolver asks the system.
func newResolver() *resolver {
	return &resolver{resolvConf: "/etc/resolv.conf", hosts: "/etc/hosts", routed: hasRoute}
}

// hasRoute connects a datagram socket, which looks the route up and sends nothing.
func hasRoute(a netip.Addr) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// usable leaves those of the other family out where one family has no way out of this machine: half of the requests to a name with both
// would fail on a machine without IPv6 (RFC 6724 section 5, rule 1). Where nothing has a way all stay: a route may be on its way.
func (r *resolver) usable(all []netip.Addr) []netip.Addr {
	four, six := 0, 0
	for _, a := range all {
		if a.Is4() {
			four++
		} else {
			six++
		}
	}
	if four == 0 || six == 0 {
		return all
	}
	out := make([]netip.Addr, 0, len(all))
	for _, a := range all {
		if r.routed(a) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return all
	}
	return out
}

// lookup finds the endpoints of a DNS discovery and how long they hold, before floor and ceiling.
func (r *resolver) lookup(ctx context.Context, d *configv1.DnsDiscovery) ([]*configv1.Endpoint, time.Duration, error) {
	if d.GetRecord() == "srv" {
		return r.services(ctx, d)
	}
	addresses, ttl, err := r.addresses(ctx, d, d.GetHost())
	if err != nil {
		return nil, 0, err
	}
	return endpointsOf(d, d.GetHost(), addresses, uint16(d.GetPort()), 1), ttl, nil
}

// endpointsOf makes endpoints of the addresses of a host: one of each, or a logical one of all.
func endpointsOf(d *configv1.DnsDiscovery, host string, addresses []netip.Addr, port uint16, weight uint32) []*configv1.Endpoint {
	if d.GetLogical() {
		return []*configv1.Endpoint{logical(host, addresses, port, weight)}
	}
	out := make([]*configv1.Endpoint, 0, len(addresses))
	for _, a := range addresses {
		out = append(out, &configv1.Endpoint{Address: netip.AddrPortFrom(a, port).String(), Weight: weight})
	}
	return out
}

// services looks SRV records up: the targets of the best priority, with their weights. Those of worse ones are for when the best are
// gone, which configd cannot see.
func (r *resolver) services(ctx context.Context, d *configv1.DnsDiscovery) ([]*configv1.Endpoint, time.Duration, error) {
	answer, err := r.ask(ctx, d, d.GetHost(), dnsmessage.TypeSRV)
	if err != nil {
		return nil, 0, err
	}
	if len(answer.services) == 0 {
		return nil, 0, errNothing
	}
	best := slices.MinFunc(answer.services, func(a, b dnsmessage.SRVResource) int { return int(a.Priority) - int(b.Priority) }).Priority
	ttl := answer.ttl
	var out []*configv1.Endpoint
	targets := map[string][]netip.Addr{} // one of two ports is asked for once, so that its endpoints have the same addresses
	for _, s := range answer.services {
		host := strings.ToLower(strings.TrimSuffix(s.Target.String(), "."))
		if s.Priority != best || s.Port == 0 || host == "" { // the root stands for "there is none" (RFC 2782)
			continue
		}
		if targets[host] == nil {
			addresses, hold, err := r.addresses(ctx, d, host)
			if err != nil {
				return nil, 0, fmt.Errorf("target %s: %w", s.Target, err)
			}
			targets[host] = addresses
			ttl = min(ttl, hold)
		}
		out = append(out, endpointsOf(d, host, targets[host], s.Port, max(1, uint32(s.Weight)))...)
		if len(out) > maxEndpoints {
			return nil, 0, fmt.Errorf("more than %d endpoints", maxEndpoints)
		}
	}
	if len(out) == 0 {
		return nil, 0, errNothing
	}
	return out, ttl, nil
}

// addresses looks a host up: a literal, /etc/hosts, then DNS.
func (r *resolver) addresses(ctx context.Context, d *configv1.DnsDiscovery, host string) ([]netip.Addr, time.Duration, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, time.Hour, nil
	}
	four, six := d.GetRecord() != "aaaa", d.GetRecord() != "a"
	var out []netip.Addr
	if len(d.GetResolvers()) == 0 {
		for _, a := range fromHosts(r.hosts, host) {
			if (a.Is4() && four) || (a.Is6() && six) {
				out = append(out, a)
			}
		}
		if len(out) > 0 {
			return r.usable(out), 0, nil // the file may change: the floor says when to look again
		}
	}
	ttl := time.Duration(1<<63 - 1)
	var failed error
	for _, q := range []struct {
		ask  bool
		kind dnsmessage.Type
	}{{four, dnsmessage.TypeA}, {six, dnsmessage.TypeAAAA}} {
		if !q.ask {
			continue
		}
		answer, err := r.ask(ctx, d, host, q.kind)
		switch {
		case errors.Is(err, errNothing):
			continue
		case err != nil: // half of the addresses would look like a change
			failed = err
			continue
		}
		ttl = min(ttl, answer.ttl)
		out = append(out, answer.addresses...)
	}
	switch {
	case failed != nil:
		return nil, 0, failed
	case len(out) == 0:
		return nil, 0, errNothing
	case len(out) > maxEndpoints:
		return nil, 0, fmt.Errorf("more than %d addresses", maxEndpoints)
	}
	return r.usable(out), ttl, nil
}

// answer is what one question brought.
type answer struct {
	addresses []netip.Addr
	services  []dnsmessage.SRVResource
	ttl       time.Duration
}

// ask puts one question to the name servers, with the search list of the system where the name is short.
func (r *resolver) ask(ctx context.Context, d *configv1.DnsDiscovery, host string, kind dnsmessage.Type) (answer, error) {
	servers, search := d.GetResolvers(), []string(nil)
	if len(servers) == 0 {
		servers, search = systemResolvers(r.resolvConf)
	}
	names := []string{host}
	if !strings.Contains(host, ".") {
		names = nil
		for _, domain := range search {
			names = append(names, host+"."+domain)
		}
		names = append(names, host)
	}
	err := errNothing
	for _, name := range names {
		var got answer
		if got, err = askAll(ctx, servers, name, kind); err == nil || !errors.Is(err, errNothing) {
			return got, err
		}
	}
	return answer{}, err
}

// askAll asks one server after the other, twice round, until one answers.
func askAll(ctx context.Context, servers []string, name string, kind dnsmessage.Type) (answer, error) {
	qname, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return answer{}, fmt.Errorf("%q is too long for a name", name)
	}
	err = errors.New("there is no name server")
	for range 2 {
		for _, server := range servers {
			var got answer
			if got, err = askOne(ctx, server, qname, kind); err == nil || errors.Is(err, errNothing) {
				return got, err
			}
			if ctx.Err() != nil {
				return answer{}, fmt.Errorf("no answer in time: %w", err)
			}
		}
	}
	return answer{}, err
}

func askOne(ctx context.Context, server string, name dnsmessage.Name, kind dnsmessage.Type) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	id := uint16(rand.Uint32())
	question, err := query(id, name, kind)
	if err != nil {
		return answer{}, err
	}
	for _, network := range []string{"udp", "tcp"} {
		reply, err := exchange(ctx, network, server, id, question)
		if err != nil {
			return answer{}, err
		}
		got, truncated, err := read(reply, name, kind)
		if err != nil || !truncated {
			return got, err
		}
	}
	return answer{}, fmt.Errorf("%s: a truncated reply by TCP", server)
}

func query(id uint16, name dnsmessage.Name, kind dnsmessage.Type) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(dnsmessage.Question{Name: name, Type: kind, Class: dnsmessage.ClassINET}); err != nil {
		return nil, err
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	var size dnsmessage.ResourceHeader
	if err := size.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	if err := b.OPTResource(size, dnsmessage.OPTResource{}); err != nil {
		return nil, err
	}
	return b.Finish()
}

// exchange sends the question and reads the reply with its id; others that arrive on the socket are not for it.
func exchange(ctx context.Context, network, server string, id uint16, question []byte) ([]byte, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		framed := binary.BigEndian.AppendUint16(nil, uint16(len(question)))
		if _, err := c.Write(append(framed, question...)); err != nil {
			return nil, err
		}
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return nil, err
		}
		reply := make([]byte, binary.BigEndian.Uint16(length[:]))
		_, err := io.ReadFull(c, reply)
		return reply, err
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	buffer := make([]byte, maxAnswer)
	for {
		n, err := c.Read(buffer)
		if err != nil {
			return nil, err
		}
		if n >= 12 && binary.BigEndian.Uint16(buffer) == id {
			return buffer[:n], nil
		}
	}
}

// read takes a reply apart. A name that does not exist, and one without records of the kind, are errNothing.
func read(reply []byte, name dnsmessage.Name, kind dnsmessage.Type) (got answer, truncated bool, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(reply)
	if err != nil {
		return got, false, err
	}
	q, err := p.Question()
	if err != nil || !h.Response || !strings.EqualFold(q.Name.String(), name.String()) || q.Type != kind {
		return got, false, errors.New("a reply to another question")
	}
	if h.Truncated {
		return got, true, nil
	}
	switch h.RCode {
	case dnsmessage.RCodeSuccess:
	case dnsmessage.RCodeNameError:
		return got, false, errNothing
	default:
		return got, false, fmt.Errorf("the name server answers %s", strings.TrimPrefix(h.RCode.String(), "RCode"))
	}
	if err := p.SkipAllQuestions(); err != nil {
		return got, false, err
	}
	got.ttl = time.Duration(1<<63 - 1)
	for {
		r, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return answer{}, false, err
		}
		got.ttl = min(got.ttl, time.Duration(r.TTL)*time.Second) // of the aliases on the way too
		switch {
		case r.Type != kind:
			err = p.SkipAnswer()
		case kind == dnsmessage.TypeA:
			var a dnsmessage.AResource
			if a, err = p.AResource(); err == nil {
				got.addresses = append(got.addresses, netip.AddrFrom4(a.A))
			}
		case kind == dnsmessage.TypeAAAA:
			var a dnsmessage.AAAAResource
			if a, err = p.AAAAResource(); err == nil {
				got.addresses = append(got.addresses, netip.AddrFrom16(a.AAAA).Unmap())
			}
		default:
			var s dnsmessage.SRVResource
			if s, err = p.SRVResource(); err == nil {
				got.services = append(got.services, s)
			}
		}
		if err != nil {
			return answer{}, false, err
		}
	}
	if len(got.addresses)+len(got.services) == 0 {
		return answer{}, false, errNothing
	}
	return got, false, nil
}

// maxSystemFile bounds resolv.conf and hosts.
const maxSystemFile = 1 << 20

func systemResolvers(path string) (servers, search []string) {
	data, err := os.ReadFile(path)
	if err != nil || len(data) > maxSystemFile {
		return []string{"127.0.0.1:53"}, nil
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(servers) < 3 {
				servers = append(servers, netip.AddrPortFrom(a, 53).String())
			}
		case "search", "domain":
			search = f[1:min(len(f), 7)]
		}
	}
	if len(servers) == 0 {
		servers = []string{"127.0.0.1:53"}
	}
	return servers, search
}

func fromHosts(path, host string) []netip.Addr {
	data, err := os.ReadFile(path)
	if err != nil || len(data) > maxSystemFile {
		return nil
	}
	var out []netip.Addr
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 || !slices.ContainsFunc(f[1:], func(name string) bool { return strings.EqualFold(name, host) }) {
			continue
		}
		if a, err := netip.ParseAddr(f[0]); err == nil && a.Zone() == "" {
			out = append(out, a.Unmap())
		}
	}
	return out
}
