# The smallest useful file: one site on port 80, proxied to a server on this machine.
site "shop.example.com" {
  upstream = ["127.0.0.1:8080"]
}
