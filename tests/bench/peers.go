package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func (b *bed) newPeer(name string) (*peer, error) {
	p := &peer{name: name, dir: filepath.Join(b.dir, name), http: port(), tcp: port(), logged: port()}
	return p, os.Mkdir(p.dir, 0o755)
}

// retinue runs the whole suite: stats on, one worker.
func (b *bed) retinue(bin string) (*peer, error) {
	p, err := b.newPeer("retinue")
	if err != nil {
		return nil, err
	}
	p.bin, p.config = filepath.Join(bin, "retinue"), filepath.Join(p.dir, "retinue.hcl")
	if err := os.WriteFile(p.config, []byte(b.hcl(p)), 0o644); err != nil {
		return nil, err
	}
	return b.run(p, exec.Command(p.bin, "run", "--config", p.config, "--dir", filepath.Join(p.dir, "run")))
}

func (b *bed) hcl(p *peer) string {
	listener := `
listener %q {
  address = ["127.0.0.1:%d"]
  http {%s
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.up }
    }
  }
}
`
	return "runtime { workers = 1 }\n" + fmt.Sprintf(listener, "http", p.http, "") +
		fmt.Sprintf(listener, "logged", p.logged, "\n    access_log = access_log.main") + fmt.Sprintf(`
listener "tcp" {
  address = ["127.0.0.1:%d"]
  tcp { cluster = cluster.up }
}
cluster "up" { endpoints = ["127.0.0.1:%d"] }
access_log "main" { path = "%s/access.log" }
stats { listen = "127.0.0.1:%d" }
`, p.tcp, b.upstreamPort, p.dir, port())
}

// haproxy is nil where it is not installed.
func (b *bed) haproxy(string) (*peer, error) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, nil
	}
	p, err := b.newPeer("haproxy")
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`global
  nbthread 1
  maxconn 12000
  no strict-limits
defaults
  mode http
  timeout client 3600s
  timeout server 3600s
  timeout connect 5s
  timeout http-keep-alive 3600s
  http-reuse always
  maxconn 12000
backend up
  option forwardfor
  server u 127.0.0.1:%[1]d pool-max-conn 1024
frontend http
  bind 127.0.0.1:%[2]d backlog 4096
  default_backend up
listen tcp
  mode tcp
  bind 127.0.0.1:%[3]d backlog 4096
  option splice-auto
  server u 127.0.0.1:%[1]d
`, b.upstreamPort, p.http, p.tcp)
	file := filepath.Join(p.dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	return b.run(p, exec.Command(path, "-db", "-f", file))
}

// nginx is nil where it is not installed, or without its stream module.
func (b *bed) nginx(string) (*peer, error) {
	path, err := exec.LookPath("nginx")
	if err != nil {
		return nil, nil
	}
	module := ""
	if built, _ := exec.Command(path, "-V").CombinedOutput(); strings.Contains(string(built), "with-stream=dynamic") {
		found, _ := filepath.Glob("/usr/lib*/nginx/modules/ngx_stream_module.so")
		if len(found) == 0 {
			fmt.Println("nginx is left out: its stream module is not installed")
			return nil, nil
		}
		module = "load_module " + found[0] + ";"
	}
	p, err := b.newPeer("nginx")
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`daemon off; master_process on; worker_processes 1;
%[1]s
pid %[2]s/pid; error_log %[2]s/error.log error;
events { worker_connections 16000; multi_accept on; }
http {
  access_log off; tcp_nodelay on; keepalive_timeout 3600s; keepalive_requests 100000000;
  client_body_temp_path %[2]s/b; proxy_temp_path %[2]s/p; fastcgi_temp_path %[2]s/f; uwsgi_temp_path %[2]s/u; scgi_temp_path %[2]s/s;
  upstream up { server 127.0.0.1:%[3]d; keepalive 1024; keepalive_requests 100000000; }
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_max_temp_file_size 0;
  server { listen 127.0.0.1:%[4]d backlog=4096; location / { proxy_pass http://up; } }
}
stream {
  server { listen 127.0.0.1:%[5]d backlog=4096; proxy_pass 127.0.0.1:%[3]d; tcp_nodelay on; proxy_timeout 3600s; }
}
`, module, p.dir, b.upstreamPort, p.http, p.tcp)
	file := filepath.Join(p.dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	return b.run(p, exec.Command(path, "-c", file, "-e", filepath.Join(p.dir, "error.log")))
}
