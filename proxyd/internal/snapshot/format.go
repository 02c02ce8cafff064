package snapshot

import (
	"retinue.dev/proxyd/internal/accesslog"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/tracing"
	configv1 "retinue.dev/services/api/config/v1"
)

// format compiles header values with operators. It sets links when a value wants facts of upstream connections.
func (b *Builder) format(links *bool) func(string) (filter.Formatter, error) {
	return func(format string) (filter.Formatter, error) {
		v, err := accesslog.CompileValue(format, b.Workers)
		if err != nil {
			return nil, err
		}
		*links = *links || v.Linked()
		return v, nil
	}
}

// tracing compiles the tracing of a connection manager, and sets links like format.
func (b *Builder) tracing(t *configv1.HttpTracing, links *bool) (*tracing.Config, error) {
	format := b.format(links)
	return tracing.New(t, func(text string) (tracing.Value, error) { return format(text) })
}
