package globalratelimit

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// encoded is a message of fields: numbers of fields with integers, texts or messages.
func encoded(fields ...any) []byte {
	var b []byte
	for i := 0; i < len(fields); i += 2 {
		n := protowire.Number(fields[i].(int))
		switch v := fields[i+1].(type) {
		case int:
			b = message.Number(b, n, uint64(v))
		case string:
			b = message.Field(b, n, []byte(v))
		case []byte:
			b = message.Field(b, n, v)
		}
	}
	return b
}

func limitStatus(requests, unit int, name string, remaining int, reset []byte) []byte {
	return encoded(statusCurrentLimit, encoded(limitRequests, requests, limitUnit, unit, limitName, name), statusRemaining, remaining, statusReset, reset)
}

func show(b *header.Block) string {
	var list []string
	for i := range b.Len() {
		list = append(list, string(b.NameAt(i))+"="+string(b.ValueAt(i)))
	}
	return strings.Join(list, " ")
}

// TestRead has a row for each thing that a service may say.
func TestRead(t *testing.T) {
	named := func(name, value string) []byte { return encoded(1, name, 2, value) }
	for _, row := range []struct {
		name    string
		message []byte
		want    string // "none": no decision
	}{
		{"nothing", nil, "none"},
		{"no code", encoded(answerStatuses, encoded(1, 1)), "none"},
		{"UNKNOWN", encoded(answerCode, 0), "none"},
		{"a code that is not known", encoded(answerCode, 3), "none"},
		{"a code of another type", encoded(answerCode, "1"), "none"},
		{"OK", encoded(answerCode, codeOK), "ok"},
		{"the last code holds", encoded(answerCode, codeOverLimit, answerCode, codeOK), "ok"},
		{"over", encoded(answerCode, codeOverLimit, answerRawBody, "slow"), "over body(slow)"},
		{"headers both ways", encoded(answerCode, codeOK, answerResponseHeaders, named("X-A", "1"), answerRequestHeaders, named("x-b", "2"), answerRequestHeaders, encoded(1, "x-c", 3, "raw")), "ok request(x-b=2 x-c=raw) response(x-a=1)"},
		{"headers that it may not touch", encoded(answerCode, codeOK, answerResponseHeaders, named("transfer-encoding", "chunked"), answerRequestHeaders, named("host", "a"), answerRequestHeaders, named(":path", "/b"), answerRequestHeaders, named("", "c")), "ok"},
		{"a header that is none", encoded(answerCode, codeOK, answerResponseHeaders, named("x-a", "1\r\nx-b: 2")), "ok"},
		{"a limit", encoded(answerCode, codeOK, answerStatuses, limitStatus(10, 2, "", 7, encoded(1, 42))), "ok 10, 10;w=60 left 7 reset 42"},
		{"the nearest of several", encoded(answerCode, codeOK, answerStatuses, limitStatus(100, 3, "hourly", 90, encoded(1, 1000)), answerStatuses, encoded(1, 1), answerStatuses, limitStatus(5, 1, "", 4, encoded(1, 1, 2, 1)), answerStatuses, limitStatus(7, 7, "", 6, nil)), `ok 5, 100;w=3600;name="hourly", 5;w=1, 7;w=604800 left 4 reset 2`},
		{"none left", encoded(answerCode, codeOverLimit, answerStatuses, limitStatus(10, 4, "", 0, nil)), "over 10, 10;w=86400 left 0 reset 0"},
		{"a unit that is not known", encoded(answerCode, codeOK, answerStatuses, limitStatus(10, 99, "", 1, nil)), "ok 10 left 1 reset 0"},
		{"a name that cannot stand in quotes", encoded(answerCode, codeOK, answerStatuses, limitStatus(10, 1, `a"b`, 1, nil)), "ok 10, 10;w=1 left 1 reset 0"},
		{"a reset that has passed", encoded(answerCode, codeOK, answerStatuses, limitStatus(10, 1, "", 1, encoded(1, -5, 2, -5))), "ok 10, 10;w=1 left 1 reset 0"},
		{"what is not known is passed over", encoded(answerCode, codeOK, 6, encoded(1, 1), 7, "quota", 100, 5), "ok"},
		{"cut off", encoded(answerCode, codeOK, answerRawBody, "body")[:4], "none"},
		{"a status that is cut off", encoded(answerCode, codeOK, answerStatuses, []byte{0x12, 0x05}), "none"},
		{"a limit that is cut off", encoded(answerCode, codeOK, answerStatuses, encoded(statusCurrentLimit, []byte{0x08})), "none"},
		{"a duration that is cut off", encoded(answerCode, codeOK, answerStatuses, encoded(statusReset, []byte{0x08})), "none"},
		{"a header that is cut off", encoded(answerCode, codeOK, answerRequestHeaders, []byte{0x0a, 0x05}), "none"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var a answer
			a.read(encoded(answerCode, codeOverLimit, answerRawBody, "earlier", answerRequestHeaders, named("x-earlier", "1"), answerStatuses, limitStatus(1, 1, "", 0, nil)), true)
			got := "none"
			if a.read(row.message, true) {
				if got = "ok"; a.over {
					got = "over"
				}
				if a.request.Len() > 0 {
					got += " request(" + show(&a.request) + ")"
				}
				if a.response.Len() > 0 {
					got += " response(" + show(&a.response) + ")"
				}
				if len(a.body) > 0 {
					got += " body(" + string(a.body) + ")"
				}
				if a.limited {
					got += fmt.Sprintf(" %s left %d reset %d", a.limit, a.remaining, a.reset)
				}
			}
			if got != row.want {
				t.Errorf("read %q, want %q", got, row.want)
			}
		})
	}
}

// FuzzRead: whatever a service sends, there is a decision only by a code, no header frames a message, and what is told stays short.
func FuzzRead(f *testing.F) {
	f.Add(encoded(answerCode, codeOK, answerStatuses, limitStatus(10, 2, "a", 7, encoded(1, 42)), answerRequestHeaders, encoded(1, "x-a", 2, "1")))
	f.Add(encoded(answerCode, codeOverLimit, answerRawBody, "slow", answerResponseHeaders, encoded(1, "Content-Length", 2, "1")))
	var a answer
	f.Fuzz(func(t *testing.T, b []byte) {
		decided := a.read(b, true)
		if decided && !a.over && !bytes.Contains(b, []byte{answerCode << 3}) {
			t.Error("decided without a code")
		}
		for _, block := range []*header.Block{&a.request, &a.response} {
			if block.Has(header.ContentLength) || block.Has(header.TransferEncoding) || block.Has(header.Host) {
				t.Errorf("headers %s", show(block))
			}
		}
		if len(a.limit) > 2*maxPolicies || a.reset < 0 || !header.ValidValue(a.limit) {
			t.Errorf("told %q, %d s", a.limit, a.reset)
		}
	})
}

// asked is the descriptors of a request as text.
func asked(b []byte) string {
	var list []string
	for len(b) > 0 {
		n, kind, value, rest, _ := message.Next(b)
		if b = rest; n == requestHitsAddend {
			list = append(list, fmt.Sprint("+", message.Varint(kind, value)))
		}
		if n != requestDescriptors {
			continue
		}
		var words []string
		for len(value) > 0 {
			n, _, entry, rest, _ := message.Next(value)
			if n != descriptorEntries {
				words, value = append(words, fmt.Sprintf("%d:%x", n, entry)), rest
				continue
			}
			_, _, key, more, _ := message.Next(entry)
			_, _, v, _, _ := message.Next(more)
			words, value = append(words, string(key)+"="+string(v)), rest
		}
		list = append(list, strings.Join(words, ","))
	}
	return strings.Join(list, "; ")
}

func generic(key, value string) *configv1.RateLimitAction {
	return &configv1.RateLimitAction{Key: key, Kind: &configv1.RateLimitAction_GenericKey{GenericKey: value}}
}

func requestHeaderAction(name string, skip bool) *configv1.RateLimitAction {
	return &configv1.RateLimitAction{Key: "h", SkipIfAbsent: skip, Kind: &configv1.RateLimitAction_RequestHeader{RequestHeader: name}}
}

func address(v4, v6 uint32) *configv1.RateLimitAction {
	return &configv1.RateLimitAction{Key: "ip", Kind: &configv1.RateLimitAction_RemoteAddress{RemoteAddress: &configv1.AddressMask{Whole: v4 > 32, V4PrefixLen: min(v4, 32), V6PrefixLen: v6}}}
}

func parameter(name string) *configv1.RateLimitAction {
	return &configv1.RateLimitAction{Key: "q", Kind: &configv1.RateLimitAction_QueryParameter{QueryParameter: name}}
}

func tenth(expect bool) *configv1.RateLimitAction {
	return &configv1.RateLimitAction{Key: "m", Kind: &configv1.RateLimitAction_Match{Match: &configv1.RateLimitMatch{Value: "v", ExpectNoMatch: !expect, Match: &configv1.RouteMatch{
		Headers: []*configv1.FieldMatch{{Name: "x-env", Test: &configv1.FieldMatch_Exact{Exact: "canary"}}},
	}}}}
}

// headerOr is a format: the header of its name, or a text without a dash.
type headerOr string

func (h headerOr) Append(dst []byte, s *stream.Stream) []byte {
	if !strings.Contains(string(h), "-") {
		return append(dst, h...)
	}
	return append(dst, s.Request.GetName([]byte(h))...)
}

func format(text string) *configv1.RateLimitAction {
	return &configv1.RateLimitAction{Key: "f", Kind: &configv1.RateLimitAction_Format{Format: text}}
}

func build(o *configv1.GlobalRateLimitFilter) (*Filter, error) {
	o.Cluster, o.Domain, o.TimeoutMs, o.Status, o.StatusOnError = "limits", "d", 20, 429, 500
	return New(o, &Needs{
		Workers: 1, Cluster: func(string) (cluster.Handle, bool) { return 0, true },
		Value: func(format string) (Value, error) {
			if format == "" {
				return nil, errors.New("no format")
			}
			return headerOr(format), nil
		},
	})
}

func TestDescriptors(t *testing.T) {
	list := func(actions ...*configv1.RateLimitAction) *configv1.RateLimitDescriptor {
		return &configv1.RateLimitDescriptor{Actions: actions}
	}
	counting := func(d *configv1.RateLimitDescriptor, hits, limit, unit string) *configv1.RateLimitDescriptor {
		d.HitsAddend, d.LimitRequests, d.LimitUnit = hits, limit, unit
		return d
	}
	long := strings.Repeat("x", 2*maxValue)
	for _, row := range []struct {
		descriptors []*configv1.RateLimitDescriptor
		client      string
		headers     string // "name: value, …"
		path        string
		want        string // "": the service is not asked
	}{
		{[]*configv1.RateLimitDescriptor{list(generic("a", "1"), generic("b", "2")), list(generic("c", "3"))}, "", "", "/", "a=1,b=2; c=3"},
		{[]*configv1.RateLimitDescriptor{list(generic("a", "1"), requestHeaderAction("x-user", false)), list(generic("c", "3"))}, "", "", "/", "c=3"},
		{[]*configv1.RateLimitDescriptor{list(generic("a", "1"), requestHeaderAction("x-user", false))}, "", "x-user: ann, x-user: bob", "/", "a=1,h=ann"},
		{[]*configv1.RateLimitDescriptor{list(generic("a", "1"), requestHeaderAction("x-user", true))}, "", "", "/", "a=1"},
		{[]*configv1.RateLimitDescriptor{list(generic("a", "1"), requestHeaderAction("x-user", false))}, "", "x-user: ", "/", ""},
		{[]*configv1.RateLimitDescriptor{list(requestHeaderAction("x-user", true))}, "", "", "/", ""},
		{[]*configv1.RateLimitDescriptor{list(requestHeaderAction("user-agent", false))}, "", "user-agent: curl", "/", "h=curl"},
		{[]*configv1.RateLimitDescriptor{list(requestHeaderAction(":path", false), requestHeaderAction(":method", false))}, "", "", "/a?b", "h=/a?b,h=GET"},
		{[]*configv1.RateLimitDescriptor{list(requestHeaderAction("x-user", false))}, "", "x-user: " + long, "/", "h=" + long[:maxValue]},
		{[]*configv1.RateLimitDescriptor{list(requestHeaderAction("x-user", false))}, "", "x-user: a\xffb", "/", "h=a!b"},
		{[]*configv1.RateLimitDescriptor{list(requestHeaderAction("x-user", false))}, "", "x-user: " + long[1:maxValue] + "é", "/", "h=" + long[1:maxValue] + "!"},
		{[]*configv1.RateLimitDescriptor{list(address(99, 0))}, "198.51.100.7", "", "/", "ip=198.51.100.7"},
		{[]*configv1.RateLimitDescriptor{list(address(99, 0))}, "::ffff:198.51.100.7", "", "/", "ip=198.51.100.7"},
		{[]*configv1.RateLimitDescriptor{list(address(99, 0))}, "fe80::1%eth0", "", "/", "ip=fe80::1"},
		{[]*configv1.RateLimitDescriptor{list(address(99, 0))}, "", "", "/", ""},
		{[]*configv1.RateLimitDescriptor{list(address(16, 64))}, "198.51.100.7", "", "/", "ip=198.51.0.0/16"},
		{[]*configv1.RateLimitDescriptor{list(address(0, 0))}, "198.51.100.7", "", "/", "ip=0.0.0.0/0"},
		{[]*configv1.RateLimitDescriptor{list(address(16, 64))}, "2001:db8:1:2:3::4%eth0", "", "/", "ip=2001:db8:1:2::/64"},
		{[]*configv1.RateLimitDescriptor{list(parameter("a b"))}, "", "", "/?x&a+b=0&a%20b=%2fc%2&a%20b=2", "q=/c%2"},
		{[]*configv1.RateLimitDescriptor{list(parameter("a"))}, "", "", "/?a=", ""},
		{[]*configv1.RateLimitDescriptor{list(parameter("a"))}, "", "", "/a=1", ""},
		{[]*configv1.RateLimitDescriptor{list(parameter("a"))}, "", "", "/?&&%61=%zz=1&a=2", "q=%zz=1"},
		{[]*configv1.RateLimitDescriptor{list(tenth(true))}, "", "x-env: canary", "/", "m=v"},
		{[]*configv1.RateLimitDescriptor{list(format("x-user")), list(format("all"))}, "", "x-user: ann", "/", "f=ann; f=all"},
		{[]*configv1.RateLimitDescriptor{list(format("x-user")), list(format("all"))}, "", "", "/", "f=all"},
		{[]*configv1.RateLimitDescriptor{counting(list(generic("a", "1")), "7", "", "")}, "", "", "/", "a=1,3:0807"},
		{[]*configv1.RateLimitDescriptor{counting(list(generic("a", "1")), "0", "300", "hour")}, "", "", "/", "a=1,2:08ac021003,3:0800"},
		{[]*configv1.RateLimitDescriptor{counting(list(generic("a", "1")), "x-cost", "x-plan", "year")}, "", "x-cost: 2, x-plan: 5", "/", "a=1,2:08051006,3:0802"},
		{[]*configv1.RateLimitDescriptor{counting(list(generic("a", "1")), "x-cost", "x-plan", "year")}, "", "", "/", "a=1"},
		{[]*configv1.RateLimitDescriptor{counting(list(generic("a", "1")), "x-cost", "x-plan", "year")}, "", "x-cost: -1, x-plan: 1e3", "/", "a=1"},
		{[]*configv1.RateLimitDescriptor{counting(list(generic("a", "1")), "x-cost", "x-plan", "day")}, "", "x-cost: 1000000000, x-plan: 4294967295", "/", "a=1,2:08ffffffff0f1004,3:088094ebdc03"},
		{[]*configv1.RateLimitDescriptor{counting(list(generic("a", "1")), "x-cost", "x-plan", "day")}, "", "x-cost: 1000000001, x-plan: 4294967296", "/", "a=1"},
		{[]*configv1.RateLimitDescriptor{counting(list(generic("a", "1")), "x-cost", "x-plan", "day")}, "", "x-cost: 99999999999999999999999999, x-plan: 99999999999999999999999999", "/", "a=1"},
		{[]*configv1.RateLimitDescriptor{list(tenth(true))}, "", "", "/", ""},
		{[]*configv1.RateLimitDescriptor{list(tenth(false))}, "", "", "/", "m=v"},
		{[]*configv1.RateLimitDescriptor{list(&configv1.RateLimitAction{Key: "c", Kind: &configv1.RateLimitAction_DestinationCluster{DestinationCluster: true}})}, "", "", "/", ""}, // the stream has no router
	} {
		f, err := build(&configv1.GlobalRateLimitFilter{Descriptors: row.descriptors})
		if err != nil {
			t.Fatal(err)
		}
		s := &stream.Stream{}
		s.Request.SetMethodID(header.MethodGet)
		s.Request.SetPath([]byte(row.path))
		if row.client != "" {
			s.Client = netip.MustParseAddr(row.client)
		}
		for _, h := range strings.Split(row.headers, ", ") {
			if name, value, ok := strings.Cut(h, ": "); ok {
				s.Request.Add(header.Other, []byte(name), []byte(value))
			}
		}
		request, described := f.appendRequest(nil, s, &buffers{})
		if got := asked(request); got != row.want || described != (row.want != "") {
			t.Errorf("%q, %s: asked %q, want %q", row.headers, row.path, got, row.want)
		}
	}
}

func TestHits(t *testing.T) {
	for hits, want := range map[uint32]string{0: "a=1", 1: "a=1", 5: "a=1; +5"} {
		f, err := build(&configv1.GlobalRateLimitFilter{HitsAddend: hits, Descriptors: []*configv1.RateLimitDescriptor{{Actions: []*configv1.RateLimitAction{generic("a", "1")}}}})
		if err != nil {
			t.Fatal(err)
		}
		request, _ := f.appendRequest(nil, &stream.Stream{}, &buffers{})
		if got := asked(request); got != want || !bytes.HasPrefix(request, encoded(requestDomain, "d")) {
			t.Errorf("%d hits: asked %q, want %q", hits, got, want)
		}
	}
}

// What configd does not send is refused all the same.
func TestRefused(t *testing.T) {
	for name, actions := range map[string][]*configv1.RateLimitAction{
		"no action":       nil,
		"no kind":         {{Key: "a"}},
		"no key":          {generic("", "1")},
		"no value":        {generic("a", "")},
		"a long prefix":   {address(32, 129)},
		"no header name":  {requestHeaderAction("", false)},
		"no parameter":    {parameter("")},
		"a match of none": {{Key: "m", Kind: &configv1.RateLimitAction_Match{Match: &configv1.RateLimitMatch{Value: "v"}}}},
	} {
		if _, err := build(&configv1.GlobalRateLimitFilter{Descriptors: []*configv1.RateLimitDescriptor{{Actions: actions}}}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := build(&configv1.GlobalRateLimitFilter{}); err == nil {
		t.Error("no descriptor is taken")
	}
}

// FuzzParameter: a query is never read beyond, and what is found is what a service may get.
func FuzzParameter(f *testing.F) {
	f.Add([]byte("/?a=1&%61=%zz"), []byte("a"))
	f.Add([]byte("/a?b%20c=%"), []byte("b c"))
	f.Fuzz(func(t *testing.T, path, name []byte) {
		value := appendParameter([]byte("before"), path, name)
		if !bytes.HasPrefix(value, []byte("before")) || len(value) > len("before")+len(path) {
			t.Errorf("%q of %q is %q", name, path, value)
		}
		if text := message.Text(nil, 1, value); !utf8.Valid(text[2:]) && len(text) < 128 {
			t.Errorf("%q is no UTF-8", text)
		}
	})
}
