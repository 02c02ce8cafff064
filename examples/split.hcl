# A new version for five requests in a hundred, by weight. The weights are locals, so that one line changes both.
locals {
  canary = 5
}

listener "web" {
  address = ["127.0.0.1:10000"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        split = [
          { cluster = cluster.web, weight = 100 - local.canary },
          { cluster = cluster.web_v2, weight = local.canary },
        ]
      }
    }
  }
}

cluster "web" { endpoints = ["10.0.1.10:8080", "10.0.1.11:8080"] }
cluster "web_v2" { endpoints = ["10.0.1.20:8080"] }
