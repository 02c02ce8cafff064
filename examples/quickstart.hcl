# The quickstart: a listener that proxies to the suite's own dashboard, so that the first request crosses the real data
# path and shows itself on the graph.
listener "quickstart" {
  address = ["127.0.0.1:10000"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/events" { # the page's live stream, which never ends
        cluster = cluster.dashboard
        timeout = "0"
      }
      route "/*" { cluster = cluster.dashboard }
    }
  }
}

cluster "dashboard" { endpoints = ["127.0.0.1:9902"] }

stats { listen = "127.0.0.1:9902" }
