package counters

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	statsv1 "retinue.dev/services/api/stats/v1"
)

var update = flag.Bool("update", false, "write docs/reference/metrics.md")

const root = "../../.."

// labelsOf says which labels tell the groups of a schema apart.
var labelsOf = map[string]string{
	"cluster": "`cluster`", "http": "`listener`: the `stat_prefix` of the http block, else the listener's name", "listener": "`listener`",
	"tcp": "`listener`: the `stat_prefix` of the tcp block, else the listener's name", "server": "none", "worker": "`worker_id`",
	"plugin": "`plugin`", "certificate": "`certificate`",
	"grpc":                     "`listener`, `grpc_service`, `grpc_method`",
	"cluster_circuit_breakers": "`cluster`, `priority`; only where `track_remaining` is set",
	"rate_limit":               "`filter`", "fault": "`filter`", "cors": "`filter`", "rbac": "`filter`", "ip": "`filter`", "basic_auth": "`filter`", "health_check": "`filter`",
	"compress": "`filter`", "ext_authz": "`filter`", "decompress": "`filter`", "global_rate_limit": "`filter`", "jwt": "`filter`", "jwt_provider": "`provider`",
}

var heads = map[string]string{
	"cluster": "Clusters", "http": "HTTP connection managers", "listener": "Listeners", "tcp": "TCP proxies", "server": "Processes of proxyd",
	"worker": "Worker loops", "plugin": "Plugins", "certificate": "Certificates", "grpc": "gRPC methods", "cluster_circuit_breakers": "What circuit breakers have left",
	"rate_limit": "Filters: rate_limit", "fault": "Filters: fault", "cors": "Filters: cors", "rbac": "Filters: rbac", "ip": "Filters: ip",
	"basic_auth": "Filters: basic_auth", "health_check": "Filters: health_check", "compress": "Filters: compress",
	"ext_authz": "Filters: ext_authz", "decompress": "Filters: decompress", "global_rate_limit": "Filters: global_rate_limit", "jwt": "Filters: jwt", "jwt_provider": "Providers of tokens: jwt_provider",
}

// TestReference holds docs/reference/metrics.md up to date with the tables.
func TestReference(t *testing.T) {
	text, path := reference(), filepath.Join(root, "docs/reference/metrics.md")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != text {
		t.Errorf("%s is stale: run `make generate`", path)
	}
}

func reference() string {
	var b strings.Builder
	b.WriteString(`<!-- Generated from proxyd's tables of series (make generate); do not edit. -->

# Metrics

What proxyd counts, as statsd shows it on ` + "`/metrics`" + `, pushes it, and ` + "`retinue stats`" + ` prints it. Names are Envoy's, with our prefix. Counters
never fall, whatever is upgraded, restarted or killed; a gauge is the sum of what the living processes say. Histograms
of times are in milliseconds: classic ones, and native ones for a Prometheus that asks for protobuf. statsd's own series, and
those of configd's look-ups of endpoints (` + "`retinue_cluster_update_*`" + `), are in [its README](../../statsd/README.md#its-own-series).

Of each schema at most ` + "`stats { max_series }`" + ` groups have series of their own; the rest are added up in one whose labels are ` + "`__other__`" + `,
and ` + "`retinue_statsd_series_dropped_total`" + ` says how many they are. A series that no snapshot of a living process names is hidden after an hour.

To StatsD a series goes as ` + "`retinue.cluster.NAME.upstream_rq_total`" + `, to DogStatsD and OTLP as ` + "`retinue.cluster.upstream_rq_total`" + ` with its
labels as tags or attributes.
`)
	kinds := map[statsv1.Kind]string{counter: "counter", gauge: "gauge", histogram: "histogram"}
	units := map[string]string{"": "", "bytes": "bytes", "s": "seconds", "ms/1024": "ms", "us": "ms", "ms": "ms"}
	for _, s := range Schemas {
		fmt.Fprintf(&b, "\n## %s\n\nLabels: %s.\n\n| name | kind | unit | what |\n| --- | --- | --- | --- |\n", heads[s.GetName()], labelsOf[s.GetName()])
		seen := map[string]bool{}
		for _, f := range s.GetFields() {
			if seen[f.GetName()] {
				continue
			}
			seen[f.GetName()] = true
			labels := ""
			for _, l := range f.GetLabels() {
				labels = "{" + l.GetName() + "}"
			}
			fmt.Fprintf(&b, "| `retinue_%s_%s%s` | %s | %s | %s |\n", s.GetName(), f.GetName(), labels, kinds[f.GetKind()], units[f.GetUnit()], f.GetHelp())
		}
	}
	return b.String()
}

// TestEveryFieldIsExplained: a series without help is a riddle at three in the morning.
func TestEveryFieldIsExplained(t *testing.T) {
	for _, s := range Schemas {
		if labelsOf[s.GetName()] == "" || heads[s.GetName()] == "" {
			t.Errorf("schema %q has no place in the reference: add it to labelsOf and heads", s.GetName())
		}
		for _, f := range s.GetFields() {
			if f.GetHelp() == "" {
				t.Errorf("%s.%s has no help", s.GetName(), f.GetName())
			}
		}
	}
}

// TestDashboardsAndAlertsNameWhatIsCounted: every metric in the Grafana dashboard and in the alert rules exists.
func TestDashboardsAndAlertsNameWhatIsCounted(t *testing.T) {
	known := map[string]bool{}
	for _, s := range Schemas {
		for _, f := range s.GetFields() {
			name := "retinue_" + s.GetName() + "_" + f.GetName()
			known[name] = true
			if f.GetKind() == histogram {
				known[name+"_bucket"], known[name+"_sum"], known[name+"_count"] = true, true, true
			}
		}
	}
	names := regexp.MustCompile(`\bretinue_[a-z0-9_]+`)
	readme, err := os.ReadFile(filepath.Join(root, "statsd/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names.FindAllString(string(readme), -1) {
		known[name] = true
	}
	for _, file := range []string{"services/packaging/grafana/retinue.json", "services/packaging/prometheus/retinue.rules.yaml"} {
		data, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		found := names.FindAllString(string(data), -1)
		if len(found) < 10 {
			t.Errorf("%s names %d metrics", file, len(found))
		}
		for _, name := range found {
			if !known[name] {
				t.Errorf("%s names %s, which nobody counts", file, name)
			}
		}
	}
}
