# Routing in one file: conditions, a canary that stays with its clients, a mirror, rewrites, header edits at every level.
# `retinue explain GET http://shop.example.com:10000/api/x --config examples/routing.hcl` tells which way a request goes.

locals {
  office = ["10.0.0.0/8", "192.168.0.0/16"]
}

listener "web" {
  address = ["0.0.0.0:10000"]
  http {
    path {
      merge_slashes   = true
      escaped_slashes = "redirect" # %2F is shown to the client as the slash that it will be
    }
    headers {
      request { set = { "x-edge" = "retinue" } }
    }
    virtual_host "shop" {
      domains = ["shop.example.com", "*.shop.example.com"]
      headers {
        response { default = { "x-frame-options" = "DENY" } }
      }

      route "/admin/*" {
        match {
          source_cidrs = local.office
          cookie "session" { present = true }
        }
        cluster = cluster.api
      }
      route "/admin/*" {
        respond {
          status = 403
          body   = "not from here\n"
        }
      }
      route "POST /upload" {
        match {
          content_types = ["image/*", "application/pdf"]
          header "content-length" { max = 10000000 }
        }
        cluster = cluster.api
        timeout = "2m"
      }
      route "~/users/[0-9]+" {
        cluster = cluster.api
        rewrite {
          regex        = "^/users/([0-9]+)$"
          substitution = "/v2/people/\\1"
          query {
            remove = ["debug"]
            set    = { source = "edge" }
          }
        }
      }
      route "/api/*" {
        split = [
          { cluster = cluster.api, weight = 95 },
          { cluster = cluster.canary, weight = 5, request_headers = { "x-canary" = "1" } },
        ]
        sticky {
          cookie = "bucket"
          ttl    = "24h"
        }
        mirror {
          cluster  = cluster.shadow
          fraction = "1%"
        }
        timeout = "5s"
        headers {
          request { add = { "x-client" = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" } }
        }
      }
      route "/old/*" {
        redirect {
          prefix = "/new/"
          status = 308
        }
      }
      route "/*" { cluster = cluster.web }
    }
  }
}

cluster "api" { endpoints = ["10.0.0.1:8080", "10.0.0.2:8080"] }
cluster "canary" { endpoints = ["10.0.0.9:8080"] }
cluster "shadow" { endpoints = ["10.0.1.1:8080"] }
cluster "web" { endpoints = ["unix:/run/web.sock"] }
