module retinue.dev/statsd

go 1.26.0

require (
	github.com/prometheus/client_model v0.6.2
	github.com/prometheus/common v0.67.1
	golang.org/x/sys v0.48.0
	retinue.dev/libs v0.0.0
	retinue.dev/services/api v0.0.0
)

require go.opentelemetry.io/proto/slim/otlp v1.11.1

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/gogo/protobuf v1.3.2 // indirect
	github.com/grafana/regexp v0.0.0-20250905093917-f7b3be9d1853 // indirect
	github.com/kr/pretty v0.3.1 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/prometheus/prometheus v0.307.3
	go.yaml.in/yaml/v2 v2.4.3 // indirect
)

require (
	golang.org/x/net v0.60.0
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

replace (
	retinue.dev/libs => ../libs
	retinue.dev/services/api => ../services/api
)
