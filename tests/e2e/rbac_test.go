package e2e

import (
	"testing"
)

// TestRbacPaths: an authoriser sees the path and the host that routes and upstreams see, however a client spells them.
func TestRbacPaths(t *testing.T) {
	st := newFilterStage(t, `
filter "rbac" "admin" {
  action = "deny"
  policy "paths" {
    permission { paths = ["/admin", "/admin/*"] }
  }
  policy "hosts" {
    permission { hosts = ["secret.example"] }
  }
}
`, `
    path {
      merge_slashes   = true
      escaped_slashes = "decode"
    }
    filters = [filter.rbac.admin]
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { status = 204 }
      }
    }`)
	const paths, hosts = "rbac_access_denied_matched_policy[paths]", "rbac_access_denied_matched_policy[hosts]"
	for _, row := range []struct {
		target, host string
		status       int
		details      string
	}{
		{"/admin", "a", 403, paths},
		{"/%61dmin", "a", 403, paths},
		{"/x/../admin", "a", 403, paths},
		{"/x/%2e%2e/admin", "a", 403, paths},
		{"/./admin", "a", 403, paths},
		{"//admin", "a", 403, paths},
		{"/%2fadmin", "a", 403, paths},
		{"/x%2f..%2fadmin/y", "a", 403, paths},
		{"/admin/x/..", "a", 403, paths},
		{"/admin?x", "a", 403, paths},
		{"http://a/admin", "a", 403, paths},
		{"/x/..;/admin", "a", 400, "path_normalization_failed"},
		{"/x\\..\\admin", "a", 400, "path_normalization_failed"},
		{"/admin%00", "a", 400, "path_normalization_failed"},
		{"/admin#x", "a", 400, "http1.invalid_url"},
		{"/admin/..", "a", 204, "direct_response"},
		{"/admins", "a", 204, "direct_response"},
		{"/x?/admin", "a", 204, "direct_response"},
		{"/", "secret.example", 403, hosts},
		{"/", "SECRET.example:80", 403, hosts},
		{"/", "secret.example.", 403, hosts},
		{"/", "secret.example.:80", 403, hosts},
		{"http://secret.example/", "a", 403, hosts},
		{"/", "x.secret.example", 204, "direct_response"},
	} {
		response, logged := st.exchangeRaw(t, "GET "+row.target+" HTTP/1.1\nHost: "+row.host)
		if logged.Status != row.status || logged.Details != row.details {
			t.Errorf("%s of %s: logged %d %s, want %d %s:\n%.100s", row.target, row.host, logged.Status, logged.Details, row.status, row.details, response)
		}
	}
}
