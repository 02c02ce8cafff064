# The profile "edge": what a proxy that anybody may reach should be configured with. Envoy's numbers for edge proxies.
runtime {
  max_connections = 50000
}

overload {}

defaults {
  listener {
    max_connections = 10000
    buffer_limit    = "32KiB"
  }
  http {
    use_remote_address           = true
    xff_num_trusted_hops         = 0
    preserve_external_request_id = false
    forward_client_cert          = "sanitize"
    timeouts {
      idle            = "1h"
      request_headers = "10s"
      request         = "5m"
      stream_idle     = "5m"
    }
    path {
      merge_slashes   = true
      escaped_slashes = "redirect"
    }
    http2 {
      max_concurrent_streams    = 100
      initial_stream_window     = "64KiB"
      initial_connection_window = "1MiB"
    }
  }
  cluster {
    buffer_limit = "32KiB"
    http2 {
      max_concurrent_streams    = 100
      initial_stream_window     = "64KiB"
      initial_connection_window = "1MiB"
    }
  }
}
