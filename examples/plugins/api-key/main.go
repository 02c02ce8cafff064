// Command api-key lets requests in that carry a known key, and tells the upstream whose it is. The configuration holds SHA-256 sums of the
// keys, never the keys. Answers may be repeated by the proxy for ttl, so that most requests never leave it.
package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"sync/atomic"
	"time"

	"retinue.dev/libs/pluginsdk"
)

type config struct {
	Header string              `json:"header" doc:"header that carries the key; \"x-api-key\" when absent"`
	Keys   map[string]string   `json:"keys" plugin:"required" doc:"client names with the SHA-256 of their keys, hexadecimal"`
	TTL    *pluginsdk.Duration `json:"ttl" doc:"how long the proxy may repeat an answer; \"10s\" when absent, \"0s\" never"`
}

type client struct {
	name string
	sum  [sha256.Size]byte
}

type filter struct {
	header  string
	clients []client
	ttl     time.Duration
}

func (f *filter) Wants() pluginsdk.Wants {
	return pluginsdk.Wants{RequestHeaders: []string{f.header}, CacheKey: []string{f.header}}
}

func (f *filter) OnRequest(h *pluginsdk.Head) pluginsdk.Answer {
	name, sum := "", sha256.Sum256([]byte(h.Get(f.header)))
	for i := range f.clients { // all of them, always: how long it takes tells nothing
		if subtle.ConstantTimeCompare(sum[:], f.clients[i].sum[:]) == 1 {
			name = f.clients[i].name
		}
	}
	if name == "" {
		refused.Add(1)
		return pluginsdk.Respond(401, "a valid API key is needed\n").Set("www-authenticate", "ApiKey").Cache(f.ttl)
	}
	accepted.Add(1)
	return pluginsdk.Answer{}.Remove(f.header).Set("x-api-client", name).Cache(f.ttl)
}

func configure(c config) (pluginsdk.Filter, error) {
	f := &filter{header: c.Header, ttl: 10 * time.Second}
	if f.header == "" {
		f.header = "x-api-key"
	}
	if c.TTL != nil {
		f.ttl = time.Duration(*c.TTL)
	}
	for name, text := range c.Keys {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != sha256.Size {
			return nil, &pluginsdk.Invalid{Field: "keys", Why: "the sum of " + name + " has not 64 hexadecimal digits: printf %s KEY | sha256sum"}
		}
		f.clients = append(f.clients, client{name, [sha256.Size]byte(b)})
	}
	return f, nil
}

// What was decided here; answers from the proxy's cache are not seen.
var accepted, refused atomic.Uint64

func metrics() []pluginsdk.Metric {
	return []pluginsdk.Metric{{Name: "accepted", Value: float64(accepted.Load())}, {Name: "refused", Value: float64(refused.Load())}}
}

func main() {
	pluginsdk.Serve(pluginsdk.Plugin[config]{Name: "api-key", Version: "1.0.0", Configure: configure, Metrics: metrics})
}
