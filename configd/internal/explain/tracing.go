package explain

import (
	configv1 "retinue.dev/services/api/config/v1"
)

// tracing tells the shares that are sampled: the http block's, where the route does not say others.
func (y *story) tracing(h *configv1.Http, r *configv1.Route) {
	t := h.GetTracing()
	if t == nil {
		return
	}
	at, random, overall := h.GetSource(), t.GetRandomSampling(), t.GetOverallSampling()
	if own := r.GetTracing(); own != nil {
		at = r.GetSource()
		if own.RandomSampling != nil {
			random = own.GetRandomSampling()
		}
		if own.OverallSampling != nil {
			overall = own.GetOverallSampling()
		}
	}
	text := percent(uint64(random), 1_000_000) + " of requests that nobody has decided about"
	if overall < 1_000_000 {
		text += ", " + percent(uint64(overall), 1_000_000) + " of what would be sampled"
	}
	if !t.GetExport() {
		text += "; the context goes on, no span is kept"
	} else if t.GetSpawnUpstreamSpan() {
		text += "; each try is a span of its own"
	}
	y.tell("tracing", "", text, at)
}
