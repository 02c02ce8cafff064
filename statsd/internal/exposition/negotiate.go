package exposition

import (
	"strconv"
	"strings"
)

// Format is an exposition format.
type Format int

// The formats.
const (
	Text        Format = iota // Prometheus 0.0.4
	OpenMetrics               // 1.0.0
	Protobuf                  // io.prometheus.client.MetricFamily, delimited: with native histograms
)

// ContentType of a response.
func (f Format) ContentType() string {
	switch f {
	case OpenMetrics:
		return "application/openmetrics-text; version=1.0.0; charset=utf-8"
	case Protobuf:
		return "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
	}
	return "text/plain; version=0.0.4; charset=utf-8"
}

// media are the types of the formats, the one preferred at the same weight first.
var media = []struct {
	name   string
	format Format
}{
	{"application/vnd.google.protobuf", Protobuf},
	{"application/openmetrics-text", OpenMetrics},
	{"text/plain", Text},
}

// Negotiate chooses by an Accept header: the format of the greatest weight, and Text when none of them is named.
// Prometheus names Protobuf, first, only where it is told to scrape native histograms.
func Negotiate(accept string) Format {
	weights := map[string]float64{}
	for _, part := range strings.Split(accept, ",") {
		kind, parameters, _ := strings.Cut(strings.TrimSpace(part), ";")
		kind = strings.ToLower(strings.TrimSpace(kind))
		q := 1.0
		for _, p := range strings.Split(parameters, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
			name, value = strings.ToLower(strings.TrimSpace(name)), strings.Trim(strings.TrimSpace(value), `"`)
			switch {
			case name == "q":
				if v, err := strconv.ParseFloat(value, 64); err == nil {
					q = v
				}
			case kind == "application/openmetrics-text" && name == "version" && value != "1.0.0" && value != "0.0.1",
				kind == "application/vnd.google.protobuf" && name == "proto" && value != "io.prometheus.client.MetricFamily",
				kind == "application/vnd.google.protobuf" && name == "encoding" && value != "delimited":
				kind = "" // not one that we write
			}
		}
		weights[kind] = max(weights[kind], q)
	}
	best, weight := Text, 0.0
	for _, m := range media {
		if weights[m.name] > weight {
			best, weight = m.format, weights[m.name]
		}
	}
	return best
}
