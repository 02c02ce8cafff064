package preflight

import (
	"bytes"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	mine := New("proxyd", "abc", "restart/v1", "config/v1")
	var b bytes.Buffer
	if err := mine.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Parse(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Check(mine); err != nil {
		t.Error(err)
	}
	if got.SnapshotID != "abc" || got.Version != mine.Version || got.Contracts["restart/v1"].Revision == 0 {
		t.Errorf("came back as %+v", got)
	}
}

func TestCheckRefuses(t *testing.T) {
	mine := New("proxyd", "", "restart/v1")
	r := mine.Contracts["restart/v1"].Revision
	for name, c := range map[string]struct{ json, want string }{
		"not JSON":       {"usage: ls", "preflight report"},
		"empty":          {"{}", "names no daemon"},
		"another daemon": {`{"daemon":"statsd","contracts":{"restart/v1":{"revision":1,"min_revision":1}}}`, `"statsd", not "proxyd"`},
		"no contract":    {`{"daemon":"proxyd","contracts":{"config/v1":{"revision":1,"min_revision":1}}}`, "does not speak restart/v1"},
		"too new":        {`{"daemon":"proxyd","contracts":{"restart/v1":{"revision":900,"min_revision":899}}}`, "899"},
		"too long":       {strings.Repeat(" ", Limit+1), "at most"},
	} {
		rep, err := Parse([]byte(c.json))
		if err == nil {
			err = rep.Check(mine)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q (ours is revision %d)", name, err, c.want, r)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"daemon":"proxyd","version":"1","contracts":{"restart/v1":{"revision":1,"min_revision":1}}}`))
	f.Add([]byte(`{"contracts":null}`))
	f.Add([]byte(``))
	mine := New("proxyd", "", "restart/v1")
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := Parse(b); err == nil {
			_ = r.Check(mine)
		}
	})
}
