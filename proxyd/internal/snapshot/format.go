package snapshot

import (
	"retinue.dev/proxyd/internal/accesslog"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/tracing"
	configv1 "retinue.dev/services/api/config/v1"
)

// Format compiles a header value with operators.
func (b *Builder) Format(format string) (filter.Formatter, error) {
	return accesslog.CompileValue(format, b.Workers)
}

// tracing compiles the tracing of a connection manager.
func (b *Builder) tracing(t *configv1.HttpTracing) (*tracing.Config, error) {
	return tracing.New(t, func(format string) (tracing.Value, error) { return accesslog.CompileValue(format, b.Workers) })
}
