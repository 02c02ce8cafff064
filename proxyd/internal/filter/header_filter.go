package filter

import (
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// headerFilter edits headers. It keeps nothing of a stream, so one serves all streams of a worker, and its scratch belongs to
// the callback that runs.
type headerFilter struct {
	stream.PassThrough
	request, response []headerOps
	scratch           []byte
}

type headerFactory []headerFilter // by worker

func newHeaderFilter(h *configv1.HeaderFilter, env *Env) (stream.Factory, error) {
	c := Compiler{Format: env.Format}
	request, err := c.ops(nil, h.GetRequest())
	if err != nil {
		return nil, err
	}
	response, err := c.ops(nil, h.GetResponse())
	if err != nil {
		return nil, err
	}
	f := make(headerFactory, env.Workers)
	for i := range f {
		f[i] = headerFilter{request: request, response: response, scratch: make([]byte, 0, 1<<10)}
	}
	return f, nil
}

// NewFilter implements stream.Factory.
func (f headerFactory) NewFilter(w *worker.Worker) stream.Filter { return &f[w.ID] }

// DecodeHeaders implements stream.Filter.
func (f *headerFilter) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	for i := range f.request {
		f.request[i].apply(&s.Request.Block, s, f.scratch)
	}
	return stream.Continue
}

// EncodeHeaders implements stream.Filter.
func (f *headerFilter) EncodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	for i := range f.response {
		f.response[i].apply(&s.Response.Block, s, f.scratch)
	}
	return stream.Continue
}
