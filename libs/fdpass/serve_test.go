package fdpass

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// text is a log that several goroutines write.
type text struct {
	sync.Mutex
	bytes.Buffer
}

func (t *text) Write(b []byte) (int, error) {
	t.Lock()
	defer t.Unlock()
	return t.Buffer.Write(b)
}

func (t *text) String() string {
	t.Lock()
	defer t.Unlock()
	return t.Buffer.String()
}

func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var log text
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answered := make(chan string, 8)
	gone, err := Serve(ctx, path, 1, slog.New(slog.NewTextHandler(&log, nil)), func(c *Conn) error {
		for {
			m, _, err := c.Recv()
			if err != nil {
				return err
			}
			answered <- string(m)
			if string(m) == "bad" {
				return errors.New("it does not know how to behave")
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	say := func(m string) *Conn {
		t.Helper()
		c, err := Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.Send([]byte(m), nil); err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := say("first")
	if m := <-answered; m != "first" {
		t.Fatalf("%q came", m)
	}
	bad := say("bad") // waits: there is one place
	select {
	case m := <-answered:
		t.Fatalf("%q was answered beside the first", m)
	case <-time.After(20 * time.Millisecond):
	}
	first.Close()
	if m := <-answered; m != "bad" {
		t.Fatalf("%q came", m)
	}
	if _, _, err := bad.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the bad one was not sent away: %v", err)
	}
	last := say("last")
	<-answered // the places before were given back
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "it does not know how to behave") {
		t.Errorf("logged:\n%s", got)
	}
	cancel()
	if _, _, err := last.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("a connection outlived its server: %v", err)
	}
	<-gone
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's name is left: %v", err)
	}
}
