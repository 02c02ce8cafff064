# An edge: two addresses, access log, an API with a time-out of its own, everything else to the web servers.
# Try it: configd -t --config examples/edge.hcl

variable "domain" { default = "shop.example.com" }

defaults {
  cluster {
    connect_timeout = "1s"
    balance         = "least_request"
  }
}

listener "web" {
  address = ["0.0.0.0:10000", "[::]:10000"]
  http {
    access_log = access_log.main

    timeouts {
      request = "1m"
    }

    virtual_host "shop" {
      domains = [var.domain, "*.${var.domain}"]

      headers {
        request {
          set = { "x-forwarded-service" = "shop" }
        }
        response {
          remove = ["x-powered-by"]
        }
      }

      route "GET /status" {
        respond {
          status = 200
          body   = "ok\n"
        }
      }
      route "/api" {
        redirect { path = "/api/" }
      }
      route "/api/*" {
        cluster = cluster.api
        timeout = "5s"
        rewrite { prefix = "/" }
      }
      route "~/user/[0-9]+/avatar" { cluster = cluster.api }
      route "/*" { cluster = cluster.web }
    }

    virtual_host "rest" {
      domains = ["*"]
      route "/*" {
        redirect { host = var.domain }
      }
    }
  }
}

cluster "api" {
  endpoints = ["10.0.0.1:8080", "10.0.0.2:8080"]
  circuit_breaker { max_connections = 1000 }
}

cluster "web" {
  endpoints = [
    { address = "10.0.1.10:8080", weight = 2 },
    { address = "10.0.1.11:8080", weight = 1 },
    { address = "unix:/run/shop/web.sock" },
  ]
}

access_log "main" {
  path   = "/var/log/retinue/access.log"
  format = "combined"
}
