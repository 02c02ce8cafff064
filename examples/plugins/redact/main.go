// Command redact masks words in responses as they stream by, however they are cut into pieces: what could be the beginning of a word is
// held back until it is known.
package main

import (
	"bytes"
	"strings"

	"retinue.dev/libs/pluginsdk"
)

type config struct {
	Words []string `json:"words" plugin:"required" doc:"what is masked, as it is written"`
	Mask  string   `json:"mask" doc:"what is put in its place; \"***\" when absent"`
}

type filter struct {
	replacer *strings.Replacer
	words    [][]byte
	longest  int
}

func (*filter) Wants() pluginsdk.Wants {
	return pluginsdk.Wants{ResponseHeaders: []string{"content-type", "content-encoding"}, ResponseBody: pluginsdk.Stream}
}

// OnRequest asks the upstream for plain text: compressed words cannot be found.
func (*filter) OnRequest(*pluginsdk.Head) pluginsdk.Answer {
	return pluginsdk.Answer{}.Remove("accept-encoding")
}

func (*filter) OnResponse(h *pluginsdk.Head) pluginsdk.Answer {
	kind := h.Get("content-type")
	if h.Get("content-encoding") != "" || !strings.HasPrefix(kind, "text/") && !strings.Contains(kind, "json") {
		return pluginsdk.Skip()
	}
	return pluginsdk.Continue()
}

func (f *filter) OnResponseBody(b *pluginsdk.Body) pluginsdk.Answer {
	held, _ := b.Stream.Value.([]byte)
	text := append(held, b.Data...)
	keep := 0
	if !b.End {
		keep = f.unfinished(text)
	}
	out := f.replacer.Replace(string(text[:len(text)-keep]))
	b.Stream.Value = bytes.Clone(text[len(text)-keep:])
	return pluginsdk.Continue().Replace([]byte(out))
}

// unfinished is the length of the longest end of text with which a word begins that may go on in the next piece.
func (f *filter) unfinished(text []byte) int {
	keep := min(f.longest-1, len(text))
	for ; keep > 0; keep-- {
		for _, w := range f.words {
			if bytes.HasPrefix(w, text[len(text)-keep:]) {
				return keep
			}
		}
	}
	return 0
}

func configure(c config) (pluginsdk.Filter, error) {
	f := &filter{}
	if c.Mask == "" {
		c.Mask = "***"
	}
	var pairs []string
	for _, w := range c.Words {
		if w == "" {
			return nil, &pluginsdk.Invalid{Field: "words", Why: "an empty word would mask everything"}
		}
		pairs = append(pairs, w, c.Mask)
		f.words = append(f.words, []byte(w))
		f.longest = max(f.longest, len(w))
	}
	if len(pairs) == 0 {
		return nil, &pluginsdk.Invalid{Field: "words", Why: "name a word to mask"}
	}
	f.replacer = strings.NewReplacer(pairs...)
	return f, nil
}

func main() {
	pluginsdk.Serve(pluginsdk.Plugin[config]{Name: "redact", Version: "1.0.0", Configure: configure})
}
