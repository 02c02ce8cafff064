package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// overwrite puts other content into a file so that nobody who only looks at it can tell.
func overwrite(t *testing.T, path, from string) {
	t.Helper()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(content)) != before.Size() {
		t.Fatalf("%s has %d bytes and not %d", from, len(content), before.Size())
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(content, 0)
	if err := errors.Join(err, f.Close(), os.Chtimes(path, before.ModTime(), before.ModTime())); err != nil {
		t.Fatal(err)
	}
}

// TestCertificatesOnSIGHUP renews a certificate by SIGHUP alone, under an idle connection of HTTP/1 and a response of HTTP/2 that is under
// way; a key that does not fit changes nothing and is a diagnostic.
func TestCertificatesOnSIGHUP(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("shop.test")
	more := make(chan string)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			for {
				_ = http.NewResponseController(w).Flush()
				select {
				case text, open := <-more:
					if !open {
						return
					}
					io.WriteString(w, text)
				case <-r.Context().Done():
					return
				}
			}
		}
		io.WriteString(w, "ok")
	}))
	t.Cleanup(app.Close)
	config := tlsConfig(pair, "", fmt.Sprintf("endpoints = [%q]", app.Listener.Addr().String()))
	s := suite.Start(t, strings.Replace(config, `route "/*" { cluster = cluster.app }`, "route \"/*\" {\n        cluster = cluster.app\n        timeout = \"0\"\n      }", 1))
	trust := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test", NextProtos: []string{"http/1.1"}}
	idle, err := tls.Dial("tcp", s.Address("edge"), trust)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	_ = idle.SetDeadline(time.Now().Add(4 * suite.Patience))
	reader := bufio.NewReader(idle)
	stream, err := tlsClient(t, &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}, true).Get("https://" + s.Address("edge") + "/stream")
	if err == nil && stream.ProtoMajor != 2 {
		err = errors.New(stream.Proto)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	untouched := func(after string) {
		t.Helper()
		if _, err := io.WriteString(idle, "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"); err != nil {
			t.Fatalf("after %s: %v", after, err)
		}
		response, err := http.ReadResponse(reader, nil)
		if err != nil || response.Close {
			t.Fatalf("after %s: %+v %v", after, response, err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		more <- after
		reads(t, stream.Body, after)
	}
	shown := func(want int64) {
		t.Helper()
		s.Eventually(fmt.Sprintf("certificate %d is shown", want), func() error {
			if n := serial(t, s); n != want {
				return fmt.Errorf("it is %d", n)
			}
			return nil
		})
	}
	// alike is a pair whose files are as long as those that are there.
	alike := func() *certs.Pair {
		size := func(p *certs.Pair) (n int64) {
			for _, path := range []string{p.CertFile, p.KeyFile} {
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				n = n<<32 | info.Size()
			}
			return n
		}
		for {
			if p := ca.Issue("shop.test"); size(p) == size(pair) {
				return p
			}
		}
	}
	untouched("the start")

	// Once by configd's own watch, which from then on knows these files and has no reason to read them again.
	next := ca.Issue("shop.test")
	pair.Replace(t, next)
	s.Eventually("the files are read again", func() error {
		if strings.Count(s.Log(), "secrets renewed") == 0 {
			return errors.New("they are not")
		}
		return nil
	})
	shown(next.Serial)
	renewed := strings.Count(s.Log(), "secrets renewed")

	second := alike()
	overwrite(t, pair.CertFile, second.CertFile)
	overwrite(t, pair.KeyFile, second.KeyFile)
	if err := syscall.Kill(s.PID("configd"), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	shown(second.Serial)
	untouched("SIGHUP to configd")

	overwrite(t, pair.KeyFile, alike().KeyFile)
	s.Signal(syscall.SIGHUP)
	s.Eventually("the broken pair is reported", func() error {
		log := s.Log()
		if !strings.Contains(log, "E0505") || !strings.Contains(log, "test.hcl line 5") || !strings.Contains(log, "does not match") {
			return errors.New("it is not")
		}
		return nil
	})
	if n := serial(t, s); n != second.Serial {
		t.Errorf("certificate %d is shown and not %d", n, second.Serial)
	}
	untouched("a broken pair")

	third := alike()
	overwrite(t, pair.CertFile, third.CertFile)
	overwrite(t, pair.KeyFile, third.KeyFile)
	s.Signal(syscall.SIGHUP)
	shown(third.Serial)
	untouched("SIGHUP to the supervisor")
	close(more)
	if rest, err := io.ReadAll(stream.Body); err != nil || len(rest) > 0 {
		t.Errorf("the stream's end: %q %v", rest, err)
	}
	if n := strings.Count(s.Log(), "secrets renewed"); n != renewed {
		t.Error("the files were read again for another reason than SIGHUP")
	}
}

// TestKeysStayInside looks for a private key in all that the suite writes and says: it is in the files that daemons keep for a start without
// each other, which nobody else may read, and nowhere else.
func TestKeysStayInside(t *testing.T) {
	pair := certs.New(t, "servers").Issue("shop.test")
	config := tlsConfig(pair, "", `endpoints = ["127.0.0.1:1"]`)
	s := suite.Start(t, config)
	s.Write(strings.Replace(config, `"127.0.0.1:1"`, `"127.0.0.1:2"`, 1)) // so that there is a history
	if out, code := s.Retinue("reload"); code != 0 {
		t.Fatalf("reload: %s", out)
	}
	text, err := os.ReadFile(pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	secret := bytes.Split(text, []byte("\n"))[1] // a line of base64
	key, err := x509.MarshalPKCS8PrivateKey(pair.TLS.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	key = key[len(key)-100:]
	var kept []string
	err = filepath.WalkDir(s.Dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(content, secret) && !bytes.Contains(content, key) {
			return err
		}
		kept = append(kept, filepath.Base(path))
		info, err := entry.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the key and mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(kept)
	if got := strings.Join(slices.Compact(kept), " "); strings.TrimPrefix(got, "before.pb ") != "last-good.pb secrets.pb" { // before.pb: the last good one before
		t.Errorf("the key is in %s", got)
	}
	said := map[string]string{"the log": s.Log()}
	for _, command := range []string{"status --json", "stats", "diff", "explain GET https://shop.test/", "check"} {
		out, _ := s.Retinue(strings.Fields(command)...)
		said[command] = out
	}
	for what, text := range said {
		if strings.Contains(text, string(secret)) || strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("%s says the key", what)
		}
	}
}
