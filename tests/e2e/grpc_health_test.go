package e2e

import (
	"context"
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// TestGRPCHealthChecks takes a server of gRPC over TLS out and in by what its health service says.
func TestGRPCHealthChecks(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("grpc.test")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	state := health.NewServer()
	state.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_SERVING)
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&pair.TLS)))
	grpc_health_v1.RegisterHealthServer(server, state)
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" {
  endpoints = [%q]
  protocol  = "http2"
  health_check "grpc" {
    service   = "shop"
    interval  = "50ms"
    timeout   = "5s"
    healthy   = 1
    unhealthy = 1
  }
  tls {
    sni     = "grpc.test"
    ca_file = %q
  }
}
stats { listen = "off" }
`, l.Addr().String(), ca.File))
	cc, err := grpc.NewClient(s.Address("web"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	healthy := func(want float64) {
		t.Helper()
		s.Eventually(fmt.Sprintf("%v hosts are well", want), func() error {
			if n := s.Stat("retinue_cluster_membership_healthy", "cluster=app"); n != want {
				return fmt.Errorf("%v are", n)
			}
			return nil
		})
	}
	s.AwaitStat(1, "retinue_cluster_health_check_success", "cluster=app")
	healthy(1)
	state.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	healthy(0)
	state.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_SERVING)
	healthy(1)
	ctx, cancel := context.WithTimeout(context.Background(), suite.Patience)
	defer cancel()
	if _, err := testgrpc.NewTestServiceClient(cc).EmptyCall(ctx, &testgrpc.Empty{}); err != nil {
		t.Error(err)
	}
}
