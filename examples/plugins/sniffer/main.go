// Command sniffer lets connections of some protocols through and closes all others: a network filter. It looks at the first bytes that
// the client sends, holds them until it knows what they are, and then asks to see no more, so that the proxy moves the rest by itself.
package main

import (
	"bytes"
	"slices"
	"strings"

	"retinue.dev/libs/pluginsdk"
)

type config struct {
	Allow []string `json:"allow" plugin:"required" doc:"protocols that may pass: http, tls, ssh"`
}

var signatures = map[string][]string{
	"http": {"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH ", "CONNECT ", "TRACE ", "PRI * HT"},
	"tls":  {"\x16\x03"},
	"ssh":  {"SSH-"},
}

func (config) Wants() pluginsdk.Wants { return pluginsdk.Wants{} }

func (config) OnConnect(*pluginsdk.Head) pluginsdk.Answer { return pluginsdk.Continue() }

func (c config) OnRead(b *pluginsdk.Body) pluginsdk.Answer {
	held, _ := b.Stream.Value.([]byte)
	data := append(held, b.Data...)
	protocol, known := recognise(data)
	switch {
	case !known && !b.End:
		b.Stream.Value = data
		return pluginsdk.Continue().Replace(nil) // not yet
	case !slices.Contains(c.Allow, protocol):
		return pluginsdk.Close()
	}
	return pluginsdk.Skip().Replace(data)
}

func (config) OnWrite(*pluginsdk.Body) pluginsdk.Answer { return pluginsdk.Continue() }

func (config) OnClose(*pluginsdk.StreamState) {}

// recognise names the protocol, "" for none that is known; known is false while more bytes could tell.
func recognise(data []byte) (protocol string, known bool) {
	known = true
	for name, list := range signatures {
		for _, s := range list {
			if bytes.HasPrefix(data, []byte(s)) {
				return name, true
			}
			known = known && !strings.HasPrefix(s, string(data))
		}
	}
	return "", known
}

func configure(c config) (pluginsdk.Filter, error) {
	for _, name := range c.Allow {
		if signatures[name] == nil {
			return nil, &pluginsdk.Invalid{Field: "allow", Why: name + " is none of http, tls, ssh"}
		}
	}
	return c, nil
}

func main() {
	pluginsdk.Serve(pluginsdk.Plugin[config]{Name: "sniffer", Version: "1.0.0", Configure: configure})
}
