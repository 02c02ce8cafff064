module retinue.dev/proxyd

go 1.26.0

require (
	github.com/andybalholm/brotli v1.2.0
	github.com/klauspost/compress v1.18.3
	retinue.dev/libs v0.0.0
	retinue.dev/services/api v0.0.0
)

require github.com/cespare/xxhash/v2 v2.3.0

require (
	golang.org/x/net v0.60.0
	golang.org/x/sys v0.49.0
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

replace (
	retinue.dev/libs => ../libs
	retinue.dev/services/api => ../services/api
)
