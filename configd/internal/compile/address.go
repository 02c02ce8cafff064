package compile

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// maxUnixPath is what fits into a socket address.
const maxUnixPath = 107

// address reads "IP:PORT" or "unix:/path" and gives its one way of writing; what is wrong is reported at v.
func (c *compiler) address(v schema.Value, zeroPort bool) (string, bool) {
	s, _ := v.V.(string)
	bad := func(code diag.Code, format string, args ...any) (string, bool) {
		c.diags.Report(code, v.Range, "Invalid address", format, args...)
		return "", false
	}
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		switch {
		case !strings.HasPrefix(p, "/"):
			return bad(diag.InvalidAddress, "The path of a unix socket is absolute: \"unix:/run/app.sock\".")
		case strings.ContainsRune(p, 0):
			return bad(diag.InvalidAddress, "A path holds no NUL.")
		case len(path.Clean(p)) > maxUnixPath:
			return bad(diag.InvalidAddress, "The path of a unix socket has at most %d bytes; this has %d.", maxUnixPath, len(path.Clean(p)))
		}
		return "unix:" + path.Clean(p), true
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return c.explainAddress(s, v.Range)
	}
	switch {
	case ap.Addr().Zone() != "":
		return bad(diag.InvalidAddress, "Addresses with a zone (%%%s) are not supported.", ap.Addr().Zone())
	case ap.Port() == 0 && !zeroPort:
		return bad(diag.InvalidAddress, "The port is 1 to 65535.")
	case !zeroPort && ap.Addr().IsUnspecified():
		return bad(diag.InvalidAddress, "%s is every address of this machine, not one to connect to: write 127.0.0.1 or [::1].", ap.Addr())
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String(), true
}

// explainAddress says what is most likely meant by a text that is no address.
func (c *compiler) explainAddress(s string, at hcl.Range) (string, bool) {
	code, detail := diag.InvalidAddress, fmt.Sprintf("%q is not an address: \"127.0.0.1:80\", \"[::1]:80\" or \"unix:/path\".", s)
	host, port, split := cutPort(s)
	_, portErr := strconv.ParseUint(port, 10, 16)
	switch ip, err := netip.ParseAddr(strings.Trim(host, "[]")); {
	case strings.Contains(s, "://"):
		detail = fmt.Sprintf("An address has no scheme: write %q.", s[strings.Index(s, "://")+3:])
	case strings.HasPrefix(s, "/"):
		detail = fmt.Sprintf("A unix socket is written %q.", "unix:"+s)
	case split && host == "":
		detail = fmt.Sprintf("An address names its host: \"0.0.0.0%s\" for every IPv4 address, \"[::]%s\" for every IPv6 address.", s, s)
	case err == nil && split && portErr != nil:
		detail = fmt.Sprintf("%q is not a port: 1 to 65535.", port)
	case err == nil && ip.Is6() && !strings.HasPrefix(s, "["):
		detail = "An IPv6 address stands in brackets: \"[::1]:80\"."
	case err == nil && !split:
		detail = fmt.Sprintf("The port is missing: \"%s:PORT\".", s)
	case host == "localhost":
		code, detail = diag.NameNotAddress, fmt.Sprintf("%q is a name: write \"127.0.0.1:%s\".", s, port)
	case split && portErr == nil && validDomain(strings.ToLower(host)):
		code, detail = diag.NameNotAddress, fmt.Sprintf("%q is a name; endpoints and listeners are addresses. A cluster resolves a name by discovery \"dns\" { name = %q }.", s, s)
	}
	c.diags.Report(code, at, "Invalid address", "%s", detail)
	return "", false
}

func cutPort(s string) (host, port string, ok bool) {
	if strings.HasPrefix(s, "[") {
		host, port, ok = strings.Cut(s, "]:")
		return host + "]", port, ok
	}
	if strings.Count(s, ":") > 1 {
		return s, "", false
	}
	return strings.Cut(s, ":")
}

// claim notes that an address is listened on; the second to claim one is told of the first.
func (c *compiler) claim(address string, at hcl.Range) {
	if strings.HasSuffix(address, ":0") {
		c.diags.Report(diag.PortZero, at, "Port 0", "The kernel picks a port, a new one whenever the listener is made.")
		return
	}
	if first, taken := c.addresses[address]; taken {
		c.diags.Report(diag.DuplicateAddress, at, "Address used twice", "%s is already listened on by %s.", address, schema.Place(first))
		return
	}
	c.addresses[address] = at
}

// validDomain checks a lower-case host name or address without port and wildcard.
func validDomain(d string) bool {
	if d == "" || len(d) > 253 {
		return false
	}
	if strings.HasPrefix(d, "[") && strings.HasSuffix(d, "]") {
		ip, err := netip.ParseAddr(d[1 : len(d)-1])
		return err == nil && ip.Is6() && ip.Zone() == ""
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if ch := label[i]; (ch < 'a' || ch > 'z') && (ch < '0' || ch > '9') && ch != '-' && ch != '_' {
				return false
			}
		}
	}
	return true
}

// domain normalises a domain of a virtual host, wildcards included.
func (c *compiler) domain(v schema.Value) (string, bool) {
	s, _ := v.V.(string)
	d := strings.ToLower(s)
	if ip, err := netip.ParseAddr(d); err == nil && ip.Is6() {
		d = "[" + ip.String() + "]"
	}
	name := d
	switch {
	case d == "*":
		return d, true
	case strings.HasPrefix(d, "*."), strings.HasPrefix(d, "*-"):
		name = d[2:]
	case strings.HasSuffix(d, ".*"), strings.HasSuffix(d, "-*"):
		name = d[:len(d)-2]
	}
	if validDomain(name) {
		return d, true
	}
	detail := fmt.Sprintf("%q is not a domain: \"shop.example.com\", \"*.example.com\", \"example.*\" or \"*\".", s)
	host, port, split := cutPort(d)
	_, portErr := strconv.ParseUint(port, 10, 16)
	switch {
	case split && portErr == nil:
		detail = fmt.Sprintf("A domain has no port: write %q; it matches on every port.", host)
	case strings.Contains(d, "://"):
		detail = "A domain has no scheme and no path."
	case strings.IndexFunc(d, func(r rune) bool { return r > 126 }) >= 0:
		detail = fmt.Sprintf("%q is written in its ASCII form here (xn--…), as browsers send it.", s)
	case strings.Contains(d, "*"):
		detail = "A wildcard stands at the beginning, before a dot or a hyphen, or so at the end: \"*.example.com\", \"*-eu.example.com\", \"example.*\", or it is \"*\" alone."
	case strings.HasSuffix(d, "."):
		detail = "A domain has no dot at its end."
	}
	c.diags.Report(diag.InvalidDomain, v.Range, "Invalid domain", "%s", detail)
	return "", false
}
