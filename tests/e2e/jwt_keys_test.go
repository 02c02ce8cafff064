package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// fetchedKeys is a configuration whose keys come from a server. more is said of how they are fetched.
func fetchedKeys(server *keyServer, more string) string {
	return strings.NewReplacer("SERVER", server.address, "MORE", more).Replace(`
jwt_provider "id" {
  claim_to_headers = { x-user = "sub" }
  remote_jwks {
    uri     = "http://id.example.com/keys?v=1"
    cluster = cluster.id
    timeout = "2m"
    MORE
  }
}
filter "jwt" "users" { requires_any = jwt_provider.id }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    filters    = [filter.jwt.users]
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
cluster "id" { endpoints = ["SERVER"] }
`)
}

// TestJWTKeysFetched: requests wait for the first keys; keys that rotate are taken; while there is no answer the last ones stay, over
// a crash of proxyd as well.
func TestJWTKeysFetched(t *testing.T) {
	first, second := newJWTKey(t, "ES256", "first"), newJWTKey(t, "ES256", "second")
	server := newKeyServer(t, nil)
	server.says(jwtKeySet(t, first))
	server.hold = make(chan struct{})
	st := newStage(t, fetchedKeys(server, `cache_duration = "1s"`))
	st.tellsWhoAsks("/")
	ask := func(k *jwtKey, http2 bool) error {
		response, got, _ := st.over(t, http2, "POST", "/", map[string]string{"authorization": "Bearer " + k.token(`"sub":"ann"`)}, "hello")
		if response.StatusCode != 200 || got != "ann|||||hello" {
			return fmt.Errorf("answered %d: %q", response.StatusCode, got)
		}
		return nil
	}
	answers := make(chan error, 8)
	var senders sync.WaitGroup
	for i := range cap(answers) {
		senders.Go(func() { answers <- ask(first, i%2 == 1) })
	}
	st.Eventually("a fetch", func() error {
		server.mu.Lock()
		defer server.mu.Unlock()
		if server.asked == 0 {
			return errors.New("nobody asks")
		}
		return nil
	})
	select {
	case err := <-answers:
		t.Fatalf("an answer before the keys: %v", err)
	default:
	}
	close(server.hold)
	senders.Wait()
	for range cap(answers) {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}

	server.says(jwtKeySet(t, second))
	st.Eventually("the next keys", func() error { return ask(second, false) })
	if err := ask(first, true); err == nil || !strings.Contains(err.Error(), "Jwks doesn't have key") {
		t.Errorf("a token of the keys before: %v", err)
	}

	server.says("")
	st.Eventually("a failure", func() error {
		if n := st.Stat("retinue_jwt_provider_jwks_fetch_failed", "provider=id"); n < 1 {
			return fmt.Errorf("%v failures", n)
		}
		return nil
	})
	if err := ask(second, true); err != nil {
		t.Errorf("the last keys are gone: %v", err)
	}
	st.Kill("proxyd")
	st.Eventually("another proxyd, with the last keys", func() error {
		c, err := http.Get("http://" + st.Address("web") + "/") //nolint:noctx // the test's end is its end
		if err != nil {
			return err
		}
		c.Body.Close()
		return nil
	})
	if err := ask(second, false); err != nil {
		t.Errorf("after a crash: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestJWTKeyMismatch: a token whose key is not in the set has it fetched at once, and those that come meanwhile wait for that; within
// the time of the provider there is no other fetch.
func TestJWTKeyMismatch(t *testing.T) {
	first, second, third := newJWTKey(t, "ES256", "first"), newJWTKey(t, "ES256", "second"), newJWTKey(t, "ES256", "third")
	server := newKeyServer(t, nil)
	server.says(jwtKeySet(t, first))
	st := newStage(t, fetchedKeys(server, `refetch_on_kid_mismatch = "1h"`))
	st.tellsWhoAsks("/")
	ask := func(k *jwtKey, http2 bool) (int, string) {
		response, got, _ := st.over(t, http2, "POST", "/", map[string]string{"authorization": "Bearer " + k.token(`"sub":"ann"`)}, "hello")
		return response.StatusCode, got
	}
	if status, got := ask(first, false); status != 200 {
		t.Fatalf("answered %d: %q", status, got)
	}
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release)
	server.mu.Lock()
	server.content, server.hold = jwtKeySet(t, first, second), hold
	server.mu.Unlock()
	asked := func() int {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.asked
	}
	answers := make(chan string, 8)
	var senders sync.WaitGroup
	for i := range cap(answers) {
		senders.Go(func() {
			status, got := ask(second, i%2 == 1)
			answers <- fmt.Sprint(status, " ", got)
		})
	}
	st.Eventually("a fetch, and everybody who waits for it", func() error {
		if n, waiting := asked(), st.Stat("retinue_http_downstream_rq_active", "listener=web"); n != 2 || waiting != float64(cap(answers)) {
			return fmt.Errorf("asked %d times, %v wait", n, waiting)
		}
		return nil
	})
	if status, got := ask(first, true); status != 200 { // who has a key waits for nothing
		t.Errorf("answered %d: %q", status, got)
	}
	select {
	case answer := <-answers:
		t.Errorf("an answer before the keys: %s", answer)
	default:
	}
	release()
	senders.Wait()
	for range cap(answers) {
		if answer := <-answers; answer != "200 ann|||||hello" {
			t.Error(answer)
		}
	}
	for range 3 {
		if status, got := ask(third, false); status != 401 || got != "Jwks doesn't have key to match kid or alg from Jwt" {
			t.Errorf("answered %d: %q", status, got)
		}
	}
	if n := asked(); n != 2 {
		t.Errorf("asked %d times", n)
	}
	st.AwaitStat(1, "retinue_jwt_provider_jwks_refetch_on_kid_mismatch", "provider=id")
	st.AwaitStat(2, "retinue_jwt_provider_jwks_fetch_success", "provider=id")
}
