// Command header-stamp sets one header on every request: the smallest plugin.
package main

import "retinue.dev/libs/pluginsdk"

type config struct {
	Header string `json:"header" plugin:"required" doc:"name of the header that is set"`
	Value  string `json:"value" doc:"its value; \"stamped\" when absent"`
}

func (config) Wants() pluginsdk.Wants { return pluginsdk.Wants{} }

func (c config) OnRequest(h *pluginsdk.Head) pluginsdk.Answer { return h.Set(c.Header, c.Value) }

func main() {
	pluginsdk.Serve(pluginsdk.Plugin[config]{Name: "header-stamp", Version: "1.0.0", Configure: func(c config) (pluginsdk.Filter, error) {
		if c.Value == "" {
			c.Value = "stamped"
		}
		return c, nil
	}})
}
