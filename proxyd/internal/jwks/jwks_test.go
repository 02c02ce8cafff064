package jwks

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"retinue.dev/libs/jwk"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/jwt"
	configv1 "retinue.dev/services/api/config/v1"
)

const keySet = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`

// server is what is asked, and what is told.
type server struct {
	*Follower
	mu     sync.Mutex
	answer func() (string, error)
	told   told
}

type told struct {
	asked    []time.Time
	settled  int
	ok, fail int
}

// seen is what was told until everybody waits.
func (s *server) seen() told {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

func newServer(dir string) *server {
	s := &server{answer: func() (string, error) { return keySet, nil }}
	s.Follower = New(Options{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Dir: dir,
		Fetch: func(context.Context, *jwt.Remote) ([]byte, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.told.asked = append(s.told.asked, time.Now())
			content, err := s.answer()
			return []byte(content), err
		},
		Settle: func(p *jwt.Provider) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.told.settled++
			p.Settle(0)
		},
		Count: func(_ *jwt.Provider, fetched bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if fetched {
				s.told.ok++
			} else {
				s.told.fail++
			}
		},
	})
	return s
}

// says changes the answer.
func (s *server) says(content string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = func() (string, error) { return content, err }
}

func provider(t *testing.T, name string) *jwt.Provider {
	p, err := jwt.NewProvider(&configv1.JwtProvider{Name: name, RemoteJwks: &configv1.RemoteJwks{
		Cluster: "id", Host: "id.example.com", Path: "/keys", TimeoutMs: 5_000, CacheDurationMs: 600_000, KidMismatchMs: 30_000,
	}}, &jwt.Needs{
		Workers: 1, Cells: []*counters.JwtProvider{new(counters.JwtProvider)},
		Cluster: func(string) (cluster.Handle, bool) { return 0, true }, Ring: func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A set is fetched once, and again before its time is over; what is no set changes nothing, and is asked for again and again.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newServer(""), provider(t, "a")
		defer s.Close()
		s.Set([]*jwt.Provider{p})
		s.Set([]*jwt.Provider{p}) // of another snapshot
		if seen := s.seen(); len(seen.asked) != 1 || !p.Ready() || seen.ok != 1 || seen.settled != 1 {
			t.Fatalf("%+v", seen)
		}
		time.Sleep(10*time.Minute - 6*time.Second)
		if n := len(s.seen().asked); n != 1 {
			t.Errorf("asked %d times before the time", n)
		}
		time.Sleep(2 * time.Second)
		if seen := s.seen(); len(seen.asked) != 2 || seen.ok != 2 {
			t.Errorf("%+v ahead of the time", seen)
		}

		const began = 2
		s.says(`{"keys":[]}`, nil)
		time.Sleep(time.Hour)
		seen := s.seen()
		if seen.fail < 40 || !p.Ready() {
			t.Errorf("%d tries in an hour", seen.fail)
		}
		for i, most := began+1, firstRetry; i < len(seen.asked); i++ {
			if d := seen.asked[i].Sub(seen.asked[i-1]); d < most/2 || d > most {
				t.Fatalf("try %d after %v, not within %v", i-began, d, most)
			}
			most = min(2*most, lastRetry)
		}
		s.says(keySet, nil)
		time.Sleep(lastRetry)
		n := len(s.seen().asked)
		time.Sleep(5 * time.Minute)
		if len(s.seen().asked) != n {
			t.Error("after a success it is not asked at once")
		}

		s.Set(nil)
		time.Sleep(time.Hour)
		if len(s.seen().asked) != n {
			t.Error("a provider that went is followed")
		}
	})
}

// Keys that are wanted are fetched at once, whatever the set's age, and once more where they are wanted while a fetch is under way.
func TestWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p, other := newServer(""), provider(t, "a"), provider(t, "b")
		defer s.Close()
		s.Set([]*jwt.Provider{p, other})
		if n := len(s.seen().asked); n != 2 {
			t.Fatalf("asked %d times", n)
		}
		s.Look() // nobody wants them
		if n := len(s.seen().asked); n != 2 {
			t.Errorf("asked %d times", n)
		}
		p.Want()
		s.Look()
		s.Look()
		if seen := s.seen(); len(seen.asked) != 3 || seen.settled != 3 || p.Wanted() {
			t.Errorf("%+v", seen)
		}

		s.mu.Lock()
		s.answer = func() (string, error) {
			if len(s.told.asked) == 4 {
				p.Want()
				go s.Look()
			}
			return keySet, nil
		}
		s.mu.Unlock()
		p.Want()
		s.Look()
		if seen := s.seen(); len(seen.asked) != 5 || seen.settled != 5 || p.Wanted() {
			t.Errorf("%+v", seen)
		}
		time.Sleep(5 * time.Minute)
		if n := len(s.seen().asked); n != 5 {
			t.Errorf("asked %d times", n)
		}
	})
}

// A failure settles who waits, and each try after it.
func TestFollowWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newServer(""), provider(t, "a")
		defer s.Close()
		s.says("", errors.New("away"))
		s.Set([]*jwt.Provider{p})
		if seen := s.seen(); p.Ready() || seen.fail != 1 || seen.settled != 1 {
			t.Errorf("%+v", seen)
		}
	})
}

// A provider that goes while its first set is on the way leaves nobody waiting.
func TestGoneBeforeAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newServer(""), provider(t, "a")
		defer s.Close()
		s.opt.Fetch = func(ctx context.Context, _ *jwt.Remote) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		s.Set([]*jwt.Provider{p})
		if seen := s.seen(); seen.settled != 0 {
			t.Errorf("%+v before the answer", seen)
		}
		s.Set(nil)
		if seen := s.seen(); seen.settled != 1 || seen.fail != 0 {
			t.Errorf("%+v", seen)
		}
	})
}

// The next generation begins with the copy.
func TestCopy(t *testing.T) {
	dir := t.TempDir()
	away := func() (string, error) { return "", errors.New("away") }
	files := func() int {
		list, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	run := func(answer func() (string, error)) (ready bool) {
		s, p := newServer(dir), provider(t, "a")
		s.answer = answer
		done := make(chan struct{})
		count := s.opt.Count
		s.opt.Count = func(p *jwt.Provider, fetched bool) { count(p, fetched); close(done) }
		s.Set([]*jwt.Provider{p})
		<-done
		s.Close()
		return p.Ready()
	}
	secret := `{"keys":[{"kty":"oct","k":"` + strings.Repeat("A", 43) + `"}]}`
	run(func() (string, error) { return secret, nil })
	if files() != 0 {
		t.Error("secrets are kept")
	}
	if run(away) {
		t.Error("there are keys")
	}
	run(func() (string, error) { return keySet, nil })
	if files() != 1 || !run(away) {
		t.Errorf("%d files", files())
	}
	list, _ := filepath.Glob(filepath.Join(dir, "*"))
	old := time.Now().Add(-keptFor - time.Hour)
	if err := os.Chtimes(list[0], old, old); err != nil {
		t.Fatal(err)
	}
	if run(away) {
		t.Error("an old copy serves")
	}
	if run(func() (string, error) { return keySet, nil }); !run(away) {
		t.Error("a copy that was fetched again is old")
	}
	again := time.Now().Add(-time.Hour)
	if err := os.Chtimes(list[0], again, again); err != nil {
		t.Fatal(err)
	}
	run(func() (string, error) { return keySet, nil })
	if info, err := os.Stat(list[0]); err != nil || info.ModTime().Before(again.Add(time.Minute)) {
		t.Errorf("a copy that was confirmed is of %v", info.ModTime())
	}
	other := filepath.Join(dir, "jwks-0000000000000000.json")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(other, old, old); err != nil {
		t.Fatal(err)
	}
	if run(away); files() != 1 {
		t.Errorf("%d files: a copy of nobody stays", files())
	}
	if err := os.WriteFile(list[0], []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if run(away) {
		t.Error("a damaged copy serves")
	}
}

func TestAsk(t *testing.T) {
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		want   string // of the error; "": none
	}{
		"a set": {func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "id.example.com" && r.URL.String() == "/keys?v=1" {
				_, _ = io.WriteString(w, keySet)
			}
		}, ""},
		"an error":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "status 503"},
		"a redirection": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, "status 302"},
		"too large": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat(" ", jwk.MaxSize+1))
		}, "too large"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "{")
		}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			at := httptest.NewServer(http.HandlerFunc(test.answer))
			defer at.Close()
			address := strings.TrimPrefix(at.URL, "http://")
			h := &cluster.Host{Address: address, IP: netip.MustParseAddrPort(address)}
			content, err := Ask(context.Background(), &cluster.Cluster{Name: "id"}, h, nil, &jwt.Remote{Host: "id.example.com", Path: "/keys?v=1"})
			if test.want == "" && (err != nil || string(content) != keySet) || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%q, %v", content, err)
			}
		})
	}
}
