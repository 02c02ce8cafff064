package accesslog

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"retinue.dev/libs/logformat"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// noon is 2026-11-24T12:34:56.007008009Z.
var noon = time.Date(2026, 11, 24, 12, 34, 56, 7008009, time.UTC).UnixNano()

func sample() *stream.Stream {
	s := &stream.Stream{Worker: &worker.Worker{}, Config: &stream.Config{Name: "web/inner"}}
	s.Info = stream.Info{
		ID: 0xabc, ConnectionID: 7, Peer: netip.MustParseAddrPort("10.1.2.3:4567"), Client: netip.MustParseAddr("10.1.2.3"),
		StartWall: noon, Start: 1e9, RequestReceived: 1e9 + 2e6, UpstreamSent: 1e9 + 3e6, UpstreamReceived: 1e9 + 10e6, End: 1e9 + 25e6,
		BytesReceived: 12, BytesSent: 3456, Status: 200, Attempts: 1, Details: "via_upstream",
		Host: &cluster.Host{Address: "127.0.0.1:8080", IP: netip.MustParseAddrPort("127.0.0.1:8080")}, ClusterName: "api", RouteName: "/api/*", HostName: "shop",
	}
	s.Link = stream.Link{Connection: 9, Local: netip.MustParseAddrPort("127.0.0.1:50000"), Protocol: "HTTP/2", Version: tls.VersionTLS13, Cipher: tls.TLS_AES_128_GCM_SHA256}
	s.Request.SetMethodID(header.MethodGet)
	s.Request.SetPath([]byte("/a?b=c"))
	s.Request.SetAuthority([]byte("shop.example.com"))
	s.Request.SetScheme([]byte("http"))
	s.Request.AddString(header.UserAgent, "", `curl "7"`)
	s.Request.AddString(header.XRequestID, "", "id-1")
	s.Request.AddString(header.Other, "x-long", "0123456789")
	s.Response = &header.Response{Status: 200}
	s.Response.AddString(header.Other, "x-took", "5")
	s.ResponseTrailers = &header.Block{}
	s.ResponseTrailers.AddString(header.Other, "x-sum", "9")
	return s
}

func render(t *testing.T, config *configv1.AccessLog, s *stream.Stream) string {
	t.Helper()
	p, err := Compile(config)
	if err != nil {
		t.Fatalf("Compile(%v): %v", config, err)
	}
	var clock Clock
	return string(p.Append(nil, s, &clock, p.MinRoom()+maxLine))
}

func TestText(t *testing.T) {
	host, _ := os.Hostname()
	for _, test := range []struct{ format, want string }{
		{"plain 100%%", "plain 100%"},
		{"%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)% %REQ(:SCHEME)% %REQ(HOST)% %PROTOCOL%", "GET /a?b=c shop.example.com http shop.example.com HTTP/1.1"},
		{"%REQ(X-LONG):4% %REQ(x-none?X-Long)% %REQ(X-NONE)%", "0123 0123456789 -"},
		{"%RESP(X-Took)% %TRAILER(X-Sum)% %RESP(:STATUS)% %RESP(X-NONE)%", "5 9 200 -"},
		{`"%REQ(User-Agent)%"`, `"curl \x227\x22"`},
		{"%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", "200 via_upstream - -"},
		{"%BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %CONNECTION_ID%", "12 3456 1 7"},
		{"%DURATION% %REQUEST_DURATION% %REQUEST_TX_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "25 2 3 10 15"},
		{"%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_TRANSPORT_FAILURE_REASON%", "127.0.0.1:8080 api 127.0.0.1:8080 127.0.0.1:50000 -"},
		{"%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %UPSTREAM_LOCAL_PORT% %UPSTREAM_CONNECTION_ID% %UPSTREAM_PROTOCOL% %UPSTREAM_TLS_VERSION% %UPSTREAM_TLS_CIPHER%", "127.0.0.1 50000 9 HTTP/2 TLSv1.3 TLS_AES_128_GCM_SHA256"},
		{"%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT%", "10.1.2.3:4567 10.1.2.3 10.1.2.3:4567 - -"},
		{"%ROUTE_NAME% %VIRTUAL_HOST_NAME% %STREAM_ID% %HOSTNAME% %CONNECTION_TERMINATION_DETAILS%", "/api/* shop id-1 " + host + " -"},
		{"%REQ_WITHOUT_QUERY(:PATH)% %REQ_WITHOUT_QUERY(X-NONE?:PATH):1% %REQ_WITHOUT_QUERY(X-NONE)% %REQ_WITHOUT_QUERY(HOST)%", "/a / - shop.example.com"},
		{"%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:ms)% %COMMON_DURATION(DS_RX_END:US_TX_END:us)% %COMMON_DURATION(DS_RX_BEG:DS_RX_END:ns)%", "10 1000 2000000"},
		{"%COMMON_DURATION(DS_TX_END:DS_RX_BEG:ms)% %COMMON_DURATION(US_TX_BEG:DS_TX_END:ms)% %UPSTREAM_CONNECTION_POOL_READY_DURATION%", "- - -"},
		{"%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT% %DOWNSTREAM_REMOTE_PORT% %DOWNSTREAM_DIRECT_REMOTE_PORT%", "127.0.0.1 8080 4567 4567"},
		{"%FILTER_CHAIN_NAME% %GRPC_STATUS% %GRPC_STATUS_NUMBER% %REQUESTED_SERVER_NAME% %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_SUBJECT%", "inner - - - - -"},
		{"%START_TIME%", "2026-11-24T12:34:56.007Z"},
		{"%START_TIME(%s.%6f %9f %f %3f)%", "1795523696.007008 007008009 007008009 007"},
		{"[%START_TIME(%d/%b/%Y:%H:%M:%S %z)%]", "[24/Nov/2026:12:34:56 +0000]"},
		{"%START_TIME(%a %A %B %c %C %D %e %F %g %G %h %I %j %k %l)%", "Tue Tuesday November Tue Nov 24 12:34:56 2026 20 11/24/26 24 2026-11-24 26 2026 Nov 12 328 12 12"},
		{"%START_TIME(%m%n%p%P%r %R %T%t%u %U %V %w %W %x %X %y %Z %%)%", "11 PMpm12:34:56 PM 12:34 12:34:56 2 47 48 2 47 11/24/26 12:34:56 26 UTC %"},
	} {
		if got := render(t, &configv1.AccessLog{Format: test.format}, sample()); got != test.want+"\n" {
			t.Errorf("%s\n got %q\nwant %q", test.format, got, test.want)
		}
	}
}

func TestTextOfAFailedRequest(t *testing.T) {
	s := &stream.Stream{Worker: &worker.Worker{}}
	s.Start, s.End, s.StartWall = 5, 5+7e6, noon
	s.Flags = stream.FlagDownstreamProtocolError | stream.FlagNoRoute
	s.Details = "http1.codec_error"
	format := "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %CONNECTION_TERMINATION_DETAILS% %DURATION% %RESPONSE_DURATION% %UPSTREAM_HOST% %DOWNSTREAM_REMOTE_ADDRESS% %RESP(X)%"
	want := "- - - 0 NR,DPE NoRouteFound,DownstreamProtocolError http1.codec_error 7 - - - -\n"
	if got := render(t, &configv1.AccessLog{Format: format}, s); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// A logical host is told by the address that the connection goes to; where there is none, by its name.
func TestLogicalHost(t *testing.T) {
	c, err := cluster.Build(&configv1.Cluster{Endpoints: []*configv1.Endpoint{{Name: "shop.test:443", Address: "192.0.2.1:443"}}}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	format := "%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT% %UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT%"
	s := sample()
	if got, want := render(t, &configv1.AccessLog{Format: format}, s), "127.0.0.1:8080 127.0.0.1 8080 127.0.0.1:8080 127.0.0.1\n"; got != want {
		t.Errorf("by address\n got %q\nwant %q", got, want)
	}
	s.Host, s.Link = c.Hosts.Hosts[0], stream.Link{Remote: netip.MustParseAddrPort("[2001:db8::1]:443")}
	if got, want := render(t, &configv1.AccessLog{Format: format}, s), "[2001:db8::1]:443 2001:db8::1 443 shop.test:443 shop.test\n"; got != want {
		t.Errorf("connected\n got %q\nwant %q", got, want)
	}
	s.Link = stream.Link{}
	if got, want := render(t, &configv1.AccessLog{Format: format}, s), "shop.test:443 shop.test:443 - shop.test:443 shop.test\n"; got != want {
		t.Errorf("not connected\n got %q\nwant %q", got, want)
	}
}

func TestClientBehindAProxy(t *testing.T) {
	s := sample()
	s.Client = netip.MustParseAddr("2001:db8::1")
	if got := render(t, &configv1.AccessLog{Format: "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}, s); got != "2001:db8::1 10.1.2.3\n" {
		t.Errorf("got %q", got)
	}
}

func TestJSON(t *testing.T) {
	got := render(t, &configv1.AccessLog{Json: []*configv1.JsonField{
		{Name: "time", Format: "%START_TIME%"},
		{Name: "status", Format: "%RESPONSE_CODE%"},
		{Name: "took", Format: "%RESPONSE_DURATION%ms"},
		{Name: "agent", Format: "%REQ(User-Agent)%"},
		{Name: "none", Format: "%REQ(X-None)%"},
		{Name: "mixed", Format: "<%REQ(X-None)%>"},
		{Name: `na"me`, Format: `lite"ral`},
		{Name: "port", Format: "%DOWNSTREAM_LOCAL_PORT%"},
		{Name: "flags", Format: "%RESPONSE_FLAGS%"},
	}}, sample())
	want := `{"time":"2026-11-24T12:34:56.007Z","status":200,"took":"10ms","agent":"curl \"7\"","none":null,"mixed":"<->","na\"me":"lite\"ral","port":null,"flags":null}` + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestInjection holds that no byte of a client begins a line, ends a quoted part or breaks the JSON.
func TestInjection(t *testing.T) {
	var every []byte
	for c := range 256 {
		every = append(every, byte(c))
	}
	text := string(appendText(nil, every, 1<<20))
	if strings.ContainsAny(text, "\n\r\"\x00\x1b\x7f") {
		t.Errorf("a control character or quote passed: %q", text)
	}
	for i := range len(text) {
		if text[i] >= 0x80 {
			t.Errorf("byte %#x passed", text[i])
		}
	}
	hostile := string(every) + "\u2028\u2029\u0085é漢"
	line := `{"x":"` + string(appendJSON(nil, []byte(hostile), 1<<20)) + `"}`
	var out struct{ X string }
	if err := json.Unmarshal([]byte(line), &out); err != nil {
		t.Fatalf("not JSON: %v", err)
	}
	if want := string(every[:128]); out.X[:128] != want || !strings.HasSuffix(out.X, "\u2028\u2029\u0085é漢") {
		t.Errorf("came back as %q", out.X)
	}
	if strings.ContainsAny(line, "\n\r\u2028\u2029\u0085\x7f") {
		t.Errorf("a line end passed: %q", line)
	}
}

// TestRoom holds that a line keeps within its room whatever the values are, and stays whole JSON.
func TestRoom(t *testing.T) {
	s := sample()
	for _, name := range []string{"x-a", "x-b", "x-c"} {
		if !s.Request.Add(header.Other, []byte(name), bytes.Repeat([]byte(`"\`), 20000)) {
			t.Fatal("the header was not taken")
		}
	}
	for _, config := range []*configv1.AccessLog{
		{Format: "%REQ(X-A)%|%REQ(X-B)%|%REQ(X-C)%|%START_TIME%|%RESPONSE_CODE%|%REQ(X-NONE)%"},
		{Json: []*configv1.JsonField{
			{Name: "a", Format: "%REQ(X-A)%"},
			{Name: "b", Format: "%REQ(X-B)%%REQ(X-C)%"},
			{Name: "n", Format: "%REQ(X-NONE)%"},
			{Name: "t", Format: "%START_TIME%"},
			{Name: "s", Format: "%RESPONSE_CODE%"},
		}},
	} {
		p, err := Compile(config)
		if err != nil {
			t.Fatal(err)
		}
		for _, extra := range []int{0, 1, 5, 7, 100, 1000, 50000, maxLine} {
			var clock Clock
			line := p.Append(nil, s, &clock, p.MinRoom()+extra)
			if len(line) > p.MinRoom()+extra {
				t.Errorf("a line of %d bytes where %d have room", len(line), p.MinRoom()+extra)
			}
			if line[len(line)-1] != '\n' || bytes.Count(line, []byte("\n")) != 1 {
				t.Errorf("not one whole line: %q", line[max(0, len(line)-40):])
			}
			if len(config.Json) > 0 && !json.Valid(line) {
				t.Errorf("with %d bytes of room the line is no JSON: …%q", extra, line[max(0, len(line)-100):])
			}
		}
	}
}

func TestValue(t *testing.T) {
	v, err := CompileValue("<%REQ(X-LONG)%%REQ(X-NONE)%> %RESPONSE_CODE%", 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(v.Append(nil, sample())); got != "<0123456789> 200" {
		t.Errorf("got %q", got)
	}
	if _, err := CompileValue("%NOPE%", 1); err == nil {
		t.Error("an unknown operator was compiled")
	}
}

// TestEveryOperator holds that each operator of the grammar is rendered by something: an operator that nobody implements
// would quietly be "-" in every log.
func TestEveryOperator(t *testing.T) {
	unknown := map[logformat.ID]bool{ // what this release cannot know of the sample
		logformat.UpstreamTransportFailureReason: true, logformat.DownstreamLocalAddress: true,
		logformat.DownstreamLocalAddressWithoutPort: true, logformat.DownstreamLocalPort: true,
	}
	for _, o := range logformat.Operators() {
		format := "%" + o.Name + "%"
		switch o.Argument {
		case logformat.Header:
			format = map[logformat.ID]string{
				logformat.Req: "%REQ(X-LONG)%", logformat.ReqWithoutQuery: "%REQ_WITHOUT_QUERY(X-LONG)%", logformat.Resp: "%RESP(X-TOOK)%", logformat.Trailer: "%TRAILER(X-SUM)%",
			}[o.ID]
		case logformat.Span:
			format = "%" + o.Name + "(DS_RX_BEG:DS_RX_END:ms)%"
		}
		s := sample()
		s.UpstreamReady = s.Start
		s.Request.AddString(header.ContentType, "", "application/grpc")
		s.Flags = stream.FlagDownstreamProtocolError
		s.Trace.On = true
		if got := render(t, &configv1.AccessLog{Format: format}, s); (got == "-\n") != (unknown[o.ID] || o.ID.OfTLS()) { // TestOfTLS has those of TLS
			t.Errorf("%s renders %q", format, got)
		}
	}
}

var combined = &configv1.AccessLog{Format: `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% - - [%START_TIME(%d/%b/%Y:%H:%M:%S %z)%] "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%" %RESPONSE_CODE% %BYTES_SENT% "%REQ(REFERER)%" "%REQ(USER-AGENT)%"`}

var wide = &configv1.AccessLog{Json: []*configv1.JsonField{
	{Name: "start_time", Format: "%START_TIME%"},
	{Name: "method", Format: "%REQ(:METHOD)%"},
	{Name: "path", Format: "%REQ(:PATH)%"},
	{Name: "protocol", Format: "%PROTOCOL%"},
	{Name: "response_code", Format: "%RESPONSE_CODE%"},
	{Name: "response_flags", Format: "%RESPONSE_FLAGS%"},
	{Name: "bytes_sent", Format: "%BYTES_SENT%"},
	{Name: "duration", Format: "%DURATION%"},
	{Name: "upstream_host", Format: "%UPSTREAM_HOST%"},
	{Name: "request_id", Format: "%REQ(X-REQUEST-ID)%"},
	{Name: "user_agent", Format: "%REQ(USER-AGENT)%"},
}}

func TestAppendDoesNotAllocate(t *testing.T) {
	s := sample()
	s.Flags = stream.FlagNoRoute
	for _, config := range []*configv1.AccessLog{combined, wide} {
		p, err := Compile(config)
		if err != nil {
			t.Fatal(err)
		}
		buf, clock := make([]byte, 0, 4096), Clock{}
		n := testing.AllocsPerRun(100, func() {
			s.StartWall += 1e9
			p.Append(buf, s, &clock, p.MinRoom()+maxLine)
		})
		if n != 0 {
			t.Errorf("%v allocations a line", n)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	for name, config := range map[string]*configv1.AccessLog{"text": combined, "json": wide} {
		b.Run(name, func(b *testing.B) {
			s := sample()
			p, err := Compile(config)
			if err != nil {
				b.Fatal(err)
			}
			buf, clock := make([]byte, 0, 4096), Clock{}
			b.ReportAllocs()
			for b.Loop() {
				s.StartWall += 1000
				p.Append(buf, s, &clock, p.MinRoom()+maxLine)
			}
		})
	}
}

func FuzzAppend(f *testing.F) {
	f.Add("%REQ(X-LONG)% %START_TIME(%c)%", []byte("a\"b\n"), 100)
	f.Add("%RESPONSE_CODE%%REQ(:PATH)%", []byte{0xff, 0xe2, 0x80, 0xa8}, 0)
	f.Fuzz(func(t *testing.T, format string, value []byte, room int) {
		if strings.Contains(format, "\n") {
			return // a line break of the format's own
		}
		room = max(0, min(room, maxLine))
		for _, config := range []*configv1.AccessLog{{Format: format}, {Json: []*configv1.JsonField{{Name: format, Format: format}, {Name: "v", Format: "%RESPONSE_CODE_DETAILS%"}}}} {
			p, err := Compile(config)
			if err != nil {
				continue
			}
			s := sample()
			s.Request.Set(header.Other, []byte("x-long"), value)
			s.Details = string(value)
			var clock Clock
			line := p.Append(nil, s, &clock, p.MinRoom()+room)
			if len(line) > p.MinRoom()+room || line[len(line)-1] != '\n' || bytes.Count(line, []byte("\n")) != 1 {
				t.Fatalf("%q: not one line within %d bytes: %q", format, p.MinRoom()+room, line)
			}
			if len(config.Json) > 0 && !json.Valid(line) {
				t.Fatalf("%q: no JSON: %q", format, line)
			}
		}
	})
}

// Words and bytes agree on what needs no escaping, wherever the odd byte stands.
func TestPlain(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			for length := at + 1; length < 24; length++ {
				value := []byte(strings.Repeat("plain text! ", 2)[:length])
				value[at] = byte(c)
				want := length
				if !plainJSON[c] {
					want = at
				}
				if got := plain(value, &plainJSON); got != want {
					t.Fatalf("%q: %d bytes are plain, want %d", value, got, want)
				}
			}
		}
	}
}
