package http1

import (
	"strings"
	"testing"
)

func TestHeaderCase(t *testing.T) {
	c := NewHeaderCase([]string{"SOAPAction", "X-API-KEY", "CONTENT-LENGTH", strings.Repeat("X", maxHeaderCase)})
	for _, test := range []struct{ name, head, want string }{
		{"own and foreign", "GET / HTTP/1.1\r\nHost: a\r\nSoapaction: Soapaction: x\r\nContent-Length: 0\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nSOAPAction: Soapaction: x\r\nCONTENT-LENGTH: 0\r\n\r\n"},
		{"each of several", "HTTP/1.1 200 OK\r\nX-Api-Key: a\r\nX-Api-Key: b\r\n\r\n", "HTTP/1.1 200 OK\r\nX-API-KEY: a\r\nX-API-KEY: b\r\n\r\n"},
		{"no more than the name", "HTTP/1.1 200 OK\r\nX-Api-Key2: a\r\nX-Api: b\r\n\r\n", "HTTP/1.1 200 OK\r\nX-Api-Key2: a\r\nX-Api: b\r\n\r\n"},
		{"the first line is none", "X-Api-Key: x HTTP/1.1\r\n\r\n", "X-Api-Key: x HTTP/1.1\r\n\r\n"},
		{"trailers", "0\r\nX-Api-Key: a\r\n\r\n", "0\r\nX-API-KEY: a\r\n\r\n"},
		{"a name as long as may be, and longer", "a\r\n" + strings.Repeat("x", maxHeaderCase) + ": 1\r\n" + strings.Repeat("x", maxHeaderCase+1) + ": 1\r\n", "a\r\n" + strings.Repeat("X", maxHeaderCase) + ": 1\r\n" + strings.Repeat("x", maxHeaderCase+1) + ": 1\r\n"},
		{"not whole", "a\r\nX-Api-Key: 1", "a\r\nX-Api-Key: 1"},
		{"no line", "", ""},
	} {
		head := []byte(test.head)
		c.Apply(head)
		if string(head) != test.want {
			t.Errorf("%s: %q, want %q", test.name, head, test.want)
		}
		NewHeaderCase(nil).Apply(head) // changes nothing
		if string(head) != test.want {
			t.Errorf("%s: without spellings %q, want %q", test.name, head, test.want)
		}
		if n := testing.AllocsPerRun(10, func() { c.Apply(head) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", test.name, n)
		}
	}
}
