// Command probe is a plugin that does what a request tells it in the header x-do, for the end-to-end tests: it answers, changes,
// lies and crashes. What it sees of bodies the configuration says. Started as "probe hostile KIND" it is another one, which floods.
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"retinue.dev/libs/pluginsdk"
)

type config struct {
	RequestBody  string   `json:"request_body" choices:"none,prefix,stream,buffer"`
	ResponseBody string   `json:"response_body" choices:"none,prefix,stream,buffer"`
	Response     bool     `json:"response" doc:"ask about response heads"`
	Observe      bool     `json:"observe"`
	CacheKey     []string `json:"cache_key"`
	When         string   `json:"when" doc:"only paths that begin so"`
	Network      bool     `json:"network" doc:"be a filter of connections"`
}

var modes = map[string]pluginsdk.BodyMode{"": pluginsdk.None, "none": pluginsdk.None, "prefix": pluginsdk.Prefix, "stream": pluginsdk.Stream, "buffer": pluginsdk.Buffer}

// head is asked about requests alone; whole about everything.
type (
	head  struct{ config }
	whole struct{ head }
)

func (h head) Wants() pluginsdk.Wants {
	w := pluginsdk.Wants{
		RequestHeaders: []string{"x-do", ":path", ":method"}, ResponseHeaders: []string{":status", "content-type"},
		Attributes: []string{"source.ip", "route.name", "listener.name"}, RequestBody: modes[h.RequestBody], ResponseBody: modes[h.ResponseBody],
		ObserveOnly: h.Observe, CacheKey: h.CacheKey, PrefixBytes: 4,
	}
	if h.When != "" {
		w.When = []*pluginsdk.Condition{pluginsdk.HasPrefix(":path", h.When)}
	}
	return w
}

var calls int

func (h head) OnRequest(r *pluginsdk.Head) pluginsdk.Answer {
	calls++
	verb, rest, _ := strings.Cut(r.Get("x-do"), " ")
	name, value, _ := strings.Cut(rest, " ")
	switch verb {
	case "respond":
		return pluginsdk.Respond(418, "short and stout\n").Set("x-from", "plugin").Detail("teapot")
	case "set":
		return r.Set(name, value)
	case "remove":
		return pluginsdk.Answer{}.Remove(name)
	case "skip":
		return pluginsdk.Skip().Set("x-skipped", "1")
	case "flood": // its log, with 24 MiB
		go func() {
			line := strings.Repeat("x", 1023)
			for range 24 << 10 {
				fmt.Println(line)
			}
		}()
	case "leak": // until somebody ends it
		go func() {
			var kept [][]byte
			for len(kept) < 1<<20 {
				kept = append(kept, bytes.Repeat([]byte("x"), 1<<20))
			}
		}()
	case "leak-files":
		for {
			if _, err := syscall.Dup(0); err != nil {
				return pluginsdk.Respond(507, err.Error())
			}
		}
	case "say":
		fmt.Println(rest)
	case "crash":
		os.Exit(3)
	case "status":
		return pluginsdk.Respond(99, "")
	case "attributes":
		return r.Set("x-attributes", r.Attribute("source.ip")+" "+r.Attribute("route.name")+" "+r.Attribute("listener.name")+" "+r.Get(":method"))
	case "mode": // of the bodies of this stream
		return pluginsdk.Continue().Mode(modes[name], modes[value])
	case "environment":
		return pluginsdk.Respond(200, strings.Join(os.Environ(), "\n"))
	case "calls":
		return pluginsdk.Respond(200, fmt.Sprint(calls))
	case "cache-it":
		return pluginsdk.Continue().Cache(time.Minute)
	case "cache":
		return pluginsdk.Respond(200, fmt.Sprint(calls)).Cache(time.Minute)
	}
	return pluginsdk.Continue()
}

func (w whole) OnRequestBody(b *pluginsdk.Body) pluginsdk.Answer { return change(b, w.RequestBody) }

func (w whole) OnResponse(r *pluginsdk.Head) pluginsdk.Answer {
	return r.Set("x-seen-status", r.Get(":status"))
}

func (w whole) OnResponseBody(b *pluginsdk.Body) pluginsdk.Answer { return change(b, w.ResponseBody) }

// change makes lower case upper and, where the length may change, puts brackets around the end.
func change(b *pluginsdk.Body, mode string) pluginsdk.Answer {
	if mode == "prefix" {
		if bytes.HasPrefix(b.Data, []byte("evil")) {
			return pluginsdk.Respond(403, "no\n")
		}
		return pluginsdk.Continue()
	}
	out := bytes.ToUpper(b.Data)
	if b.End {
		out = append(out, "[end]"...)
	}
	return pluginsdk.Continue().Replace(out)
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "hostile" {
		fmt.Fprintln(os.Stderr, hostile(os.Args[2]))
		os.Exit(1)
	}
	pluginsdk.Serve(pluginsdk.Plugin[config]{Name: "probe", Version: "1.0.0", Configure: func(c config) (pluginsdk.Filter, error) {
		if c.Network {
			return connections{c}, nil
		}
		if c.Response || c.RequestBody != "" || c.ResponseBody != "" {
			return whole{head{c}}, nil
		}
		return head{c}, nil
	}})
}
