package main

import (
	"bytes"

	"retinue.dev/libs/pluginsdk"
)

// connections is the probe of a tcp block: it does what the client's bytes say.
type connections struct{ config }

func (connections) Wants() pluginsdk.Wants {
	return pluginsdk.Wants{Attributes: []string{"source.ip"}}
}

func (connections) OnConnect(h *pluginsdk.Head) pluginsdk.Answer {
	if h.Attribute("source.ip") == "" {
		return pluginsdk.Close()
	}
	return pluginsdk.Continue()
}

func (connections) OnRead(b *pluginsdk.Body) pluginsdk.Answer {
	switch {
	case bytes.HasPrefix(b.Data, []byte("inject")): // back to the client, and nothing to the upstream
		return pluginsdk.Continue().Replace(nil).Inject([]byte("injected\n"))
	case bytes.HasPrefix(b.Data, []byte("close")):
		return pluginsdk.Close()
	case bytes.HasPrefix(b.Data, []byte("pass")):
		return pluginsdk.Skip()
	}
	return pluginsdk.Continue().Replace(bytes.ToUpper(b.Data))
}

func (connections) OnWrite(b *pluginsdk.Body) pluginsdk.Answer {
	return pluginsdk.Continue().Replace(bytes.ReplaceAll(b.Data, []byte("O"), []byte("0")))
}

func (connections) OnClose(*pluginsdk.StreamState) {}
