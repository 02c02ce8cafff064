# Plain TCP: bytes from a port to a database, at most 500 clients at a time.
listener "postgres" {
  address         = ["127.0.0.1:5432"]
  max_connections = 500
  tcp {
    cluster      = cluster.pg
    idle_timeout = "1h"
    access_log   = access_log.tcp
  }
}

cluster "pg" {
  endpoints       = ["10.0.2.5:5432", "10.0.2.6:5432"]
  connect_timeout = "2s"
}

access_log "tcp" {
  path   = "/dev/stdout"
  format = "%START_TIME% %DOWNSTREAM_REMOTE_ADDRESS% %UPSTREAM_HOST% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_FLAGS%"
}
