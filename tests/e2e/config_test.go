package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

const historyConfig = `
runtime { workers = 1 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { body = %q }
      }
    }
  }
}
stats { listen = "off" }
`

// TestHistoryDiffRollbackExplain walks through the commands that answer from history and provenance.
func TestHistoryDiffRollbackExplain(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(historyConfig, "first"))
	base := "http://" + s.Address("web")
	c := client(t)
	body := func() string {
		r, err := c.Get(base)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return string(b)
	}
	want := func(what string, code int, contains ...string) func(string, int) {
		return func(out string, got int) {
			t.Helper()
			if got != code {
				t.Fatalf("%s: exit %d, want %d: %s", what, got, code, out)
			}
			for _, text := range contains {
				if !strings.Contains(out, text) {
					t.Fatalf("%s: no %q in: %s", what, text, out)
				}
			}
		}
	}
	want("diff without changes", 0, "no changes")(s.Retinue("diff"))
	s.Write(fmt.Sprintf(historyConfig, "second"))
	want("diff with changes", 2, "~ http web", "routes[/*].respond.body", "test.hcl:8")(s.Retinue("diff"))
	want("reload", 0)(s.Retinue("reload"))
	if got := body(); got != "second" {
		t.Fatalf("after the reload: %q", got)
	}
	want("history", 0, "running")(s.Retinue("history"))
	want("rollback", 0, "applied", "the next reload applies them")(s.Retinue("rollback"))
	if got := body(); got != "first" {
		t.Fatalf("after the roll-back: %q", got)
	}
	want("diff after the roll-back", 2, "~ http web")(s.Retinue("diff"))

	// A restart of configd does not undo what was decided by hand.
	s.Kill("configd")
	s.Eventually("configd answers again", func() error {
		if out, code := s.Retinue("diff"); code != 2 {
			return fmt.Errorf("exit %d: %s", code, out)
		}
		return nil
	})
	if got := body(); got != "first" {
		t.Fatalf("after configd's restart: %q", got)
	}
	want("reload after the roll-back", 0, "applied")(s.Retinue("reload"))
	if got := body(); got != "second" {
		t.Fatalf("after the second reload: %q", got)
	}
	want("rollback too far", 1, "snapshots are kept")(s.Retinue("rollback", "19"))
	want("rollback to nothing", 1, "no kept snapshot")(s.Retinue("rollback", "abcdef"))

	want("explain what runs", 0, "✓ web", "✓ /*", "test.hcl:8", "200")(s.Retinue("explain", "GET", "http://anything/x", "--listener", "web"))
	file := filepath.Join(t.TempDir(), "other.hcl")
	if err := os.WriteFile(file, []byte(strings.Replace(historyConfig, "%q", `"other"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	want("explain a file", 0, "✓ web", "other.hcl:8")(s.Retinue("explain", "GET", "http://anything/x", "--listener", "web", "--config", file, "-H", "x-a: b"))
	want("diff of a file", 2, "respond.body")(s.Retinue("diff", file))
	want("diff of what is not there", 1, "E0102")(s.Retinue("diff", file+".missing"))
	want("bad question", 1, "a URL is written")(s.Retinue("explain", "GET", "anything"))
	want("json", 0, `"steps"`)(s.Retinue("explain", "GET", "http://anything/x", "--listener", "web", "--json"))
}

// TestRollbackBringsCertificates rolls back to a snapshot with certificates, which are in no snapshot.
func TestRollbackBringsCertificates(t *testing.T) {
	ca := certs.New(t, "ca")
	pair := ca.Issue("shop.example.com")
	config := func(body string) string {
		return fmt.Sprintf(`
runtime { workers = 1 }
certificate "shop" {
  cert_file = %q
  key_file  = %q
}
listener "web" {
  address = ["127.0.0.1:0"]
  tls { certificates = [certificate.shop] }
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { body = %q }
      }
    }
  }
}
stats { listen = "off" }
`, pair.CertFile, pair.KeyFile, body)
	}
	s := suite.Start(t, config("first"))
	address := s.Address("web")
	get := func() string {
		t.Helper()
		c := &http.Client{Timeout: suite.Patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.example.com"}}}
		r, err := c.Get("https://" + address)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return string(b)
	}
	s.Write(config("second"))
	for _, step := range []struct{ command, want string }{{"reload", "second"}, {"rollback", "first"}} {
		if out, code := s.Retinue(step.command); code != 0 {
			t.Fatalf("%s: exit %d: %s", step.command, code, out)
		}
		if got := get(); got != step.want {
			t.Errorf("after %s: %q", step.command, got)
		}
	}
}
