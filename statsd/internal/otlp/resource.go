package otlp

import (
	"os"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"

	"retinue.dev/libs/buildinfo"
	configv1 "retinue.dev/services/api/config/v1"
)

// Resource is what requests say of their sender: the service, the machine, and the attributes of the configuration, which stand for
// ours of the same name.
func Resource(service string, attributes []*configv1.StatsLabel) *resourcepb.Resource {
	host, _ := os.Hostname() // without a name the attribute is left out
	list := []*configv1.StatsLabel{{Name: "service.name", Value: service}, {Name: "service.version", Value: buildinfo.Version}}
	if host != "" {
		list = append(list, &configv1.StatsLabel{Name: "host.name", Value: host}, &configv1.StatsLabel{Name: "service.instance.id", Value: host})
	}
	r := &resourcepb.Resource{}
	written := map[string]*commonpb.KeyValue{}
	for _, a := range append(list, attributes...) {
		kv := Attribute(a.GetName(), a.GetValue())
		if old := written[a.GetName()]; old != nil {
			old.Value = kv.Value
			continue
		}
		written[a.GetName()] = kv
		r.Attributes = append(r.Attributes, kv)
	}
	return r
}

// Attribute is one with a text.
func Attribute(name, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: name, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}
