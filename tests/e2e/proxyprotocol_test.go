package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// proxyV2 is a PROXY header of version 2 for TCP, with more behind the addresses, which is skipped.
func proxyV2(source, destination string, more ...byte) []byte {
	from, to := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	family := byte(0x11)
	if from.Addr().Is6() {
		family = 0x21
	}
	addresses := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	addresses = binary.BigEndian.AppendUint16(addresses, from.Port())
	addresses = binary.BigEndian.AppendUint16(addresses, to.Port())
	addresses = append(addresses, more...)
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21"), family)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(addresses))), addresses...)
}

// TestProxyProtocolV2 passes on whose connection it is by headers of version 2, and chooses the filter chain by the address that they tell.
func TestProxyProtocolV2(t *testing.T) {
	servers := map[string]net.Listener{}
	for _, name := range []string{"inside", "outside"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		servers[name] = l
	}
	s := suite.Start(t, fmt.Sprintf(`
listener "raw" {
  address = ["127.0.0.1:0"]
  proxy_protocol { trusted = ["127.0.0.1"] }
  filter_chain "inside" {
    match { source = ["10.0.0.0/8", "2001:db8::/32"] }
    tcp { cluster = cluster.inside }
  }
  filter_chain "outside" {
    tcp { cluster = cluster.outside }
  }
}
cluster "inside" {
  endpoints      = [%q]
  proxy_protocol = "v2"
}
cluster "outside" {
  endpoints      = [%q]
  proxy_protocol = "v2"
}
stats { listen = "off" }
`, servers["inside"].Addr(), servers["outside"].Addr()))
	address := s.Address("raw")
	for _, x := range []struct {
		name   string
		header []byte
		want   []byte
		server string
	}{
		{"from inside", proxyV2("10.1.2.3:4711", "192.0.2.1:443", 4, 0, 1, 'x'), proxyV2("10.1.2.3:4711", "192.0.2.1:443"), "inside"},
		{"from inside by IPv6", proxyV2("[2001:db8::1]:4711", "[2001:db8::2]:443"), proxyV2("[2001:db8::1]:4711", "[2001:db8::2]:443"), "inside"},
		{"from outside", proxyV2("203.0.113.9:4711", "192.0.2.1:443"), proxyV2("203.0.113.9:4711", "192.0.2.1:443"), "outside"},
		{"by version 1", []byte("PROXY TCP4 10.9.9.9 192.0.2.1 1 2\r\n"), proxyV2("10.9.9.9:1", "192.0.2.1:2"), "inside"},
	} {
		c := dial(t, address)
		write(t, c, string(x.header)+"hello")
		_ = servers[x.server].(*net.TCPListener).SetDeadline(time.Now().Add(suite.Patience))
		up, err := servers[x.server].Accept()
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		_ = up.SetDeadline(time.Now().Add(suite.Patience))
		_ = c.CloseWrite()
		got, err := io.ReadAll(up)
		if err != nil || !bytes.Equal(got, append(bytes.Clone(x.want), "hello"...)) {
			t.Errorf("%s: the server received %q (%v), want %q", x.name, got, err, x.want)
		}
		up.Close()
	}
	for _, bad := range [][]byte{
		[]byte("hello, who is there?"),                                // none, where one is needed
		[]byte("\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c123456789012"),  // version 3
		[]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x041234"),          // too short for its addresses
		[]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff" + "12345678"), // longer than any needs to be
		[]byte("PROXY TCP4 10.0.0.1 10.0.0.256 1 2\r\n"),
	} {
		c := dial(t, address)
		_, _ = c.Write(bad)
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%q was answered by %d bytes", bad, n)
		}
	}
	s.AwaitStat(5, "retinue_listener_proxy_protocol_refused", "listener=raw")
}
