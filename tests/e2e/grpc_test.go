package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

const grpcConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/grpc.testing.TestService/HalfDuplexCall" { cluster = cluster.down }
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" {
  endpoints = [%q]
  protocol  = "http2"
}
cluster "down" {
  endpoints = ["127.0.0.1:1"]
  protocol  = "http2"
}
stats { listen = %q }
`

// interopServer is the grpc-go interop server.
func interopServer(t *testing.T, options ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

// interopCases are the cases of grpc-go's interop client that need no credentials of a cloud. Each ends the test's process with
// its reason when it fails.
var interopCases = []struct {
	name string
	run  func(ctx context.Context, cc *grpc.ClientConn, tc testgrpc.TestServiceClient)
}{
	{"empty_unary", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoEmptyUnaryCall(ctx, tc)
	}},
	{"large_unary", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoLargeUnaryCall(ctx, tc)
	}},
	{"client_streaming", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoClientStreaming(ctx, tc)
	}},
	{"server_streaming", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoServerStreaming(ctx, tc)
	}},
	{"ping_pong", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoPingPong(ctx, tc)
	}},
	{"empty_stream", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoEmptyStream(ctx, tc)
	}},
	{"timeout_on_sleeping_server", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoTimeoutOnSleepingServer(ctx, tc)
	}},
	{"cancel_after_begin", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoCancelAfterBegin(ctx, tc)
	}},
	{"cancel_after_first_response", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoCancelAfterFirstResponse(ctx, tc)
	}},
	{"custom_metadata", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoCustomMetadata(ctx, tc)
	}},
	{"status_code_and_message", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoStatusCodeAndMessage(ctx, tc)
	}},
	{"special_status_message", func(ctx context.Context, _ *grpc.ClientConn, tc testgrpc.TestServiceClient) {
		interop.DoSpecialStatusMessage(ctx, tc)
	}},
	{"unimplemented_method", func(ctx context.Context, cc *grpc.ClientConn, _ testgrpc.TestServiceClient) {
		interop.DoUnimplementedMethod(ctx, cc)
	}},
	{"unimplemented_service", func(ctx context.Context, cc *grpc.ClientConn, _ testgrpc.TestServiceClient) {
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(cc))
	}},
}

func runInterop(t *testing.T, target string, options ...grpc.DialOption) {
	t.Helper()
	cc, err := grpc.NewClient(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for _, test := range interopCases {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), suite.Patience)
			defer cancel()
			test.run(ctx, cc, testgrpc.NewTestServiceClient(cc))
		})
	}
}

// TestGRPCInterop runs every case of grpc-go's interop client against its server, through the proxy.
func TestGRPCInterop(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(grpcConfig, interopServer(t), "off"))
	t.Run("h2c", func(t *testing.T) {
		runInterop(t, s.Address("web"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	})
	s.AwaitStat(1, "retinue_grpc_downstream_rq", "grpc_service=grpc.testing.TestService", "grpc_method=EmptyCall", "grpc_status=0")
	s.AwaitStat(2, "retinue_grpc_downstream_rq", "grpc_method=other", "grpc_status=12") // nobody has them, so they get no series
	ca := certs.New(t, "servers")
	pair := ca.Issue("127.0.0.1", "grpc.test")
	s = suite.Start(t, tlsConfig(pair, "", fmt.Sprintf(`
  endpoints = [%q]
  protocol  = "http2"
  tls {
    sni     = "grpc.test"
    ca_file = %q
  }`, interopServer(t, grpc.Creds(credentials.NewServerTLSFromCert(&pair.TLS))), ca.File)))
	t.Run("TLS", func(t *testing.T) {
		runInterop(t, s.Address("edge"), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(ca.Pool(), "grpc.test")))
	})
}

// TestGRPCLocalReplies holds that a client of gRPC is told in its own words what the proxy has to say.
func TestGRPCLocalReplies(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(grpcConfig, interopServer(t), "off"))
	cc, err := grpc.NewClient(s.Address("web"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	client := testgrpc.NewTestServiceClient(cc)
	ctx, cancel := context.WithTimeout(context.Background(), suite.Patience)
	defer cancel()
	stream, err := client.HalfDuplexCall(ctx)
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), "upstream connect error") {
		t.Errorf("with no upstream: %v, want Unavailable and the proxy's words", err)
	}
}
