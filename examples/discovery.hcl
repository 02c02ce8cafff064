# Endpoints that are found while the configuration stays: by name, by SRV records, out of a file that another program writes.

listener "web" {
  address = ["0.0.0.0:10000"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/api/*" { cluster = cluster.api }
      route "/search/*" { cluster = cluster.search }
      route "/mail/*" { cluster = cluster.mail }
      route "/*" { cluster = cluster.web }
    }
  }
}

cluster "api" {
  discovery "dns" { name = "api.internal:8080" }
}

cluster "search" {
  discovery "dns" {
    name    = "_http._tcp.search.internal"
    record  = "srv"
    max_ttl = "30s"
  }
}

cluster "mail" {
  discovery "dns" {
    name    = "mail.example.com:80"
    logical = true # one endpoint, whatever its addresses are: it is somebody else's load balancer
  }
}

cluster "web" {
  discovery "file" { path = "/etc/retinue/endpoints/web" } # lines of "10.0.0.1:8080 WEIGHT"; replace it by a rename
}
