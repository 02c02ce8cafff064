package settings

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

func TestSchema(t *testing.T) {
	s := &filterv1.Schema{Fields: []*filterv1.Field{
		{Name: "need", Type: filterv1.Type_TYPE_STRING, Required: true, Choices: []string{"a", "b"}},
		{Name: "wait", Type: filterv1.Type_TYPE_DURATION},
		{Name: "list", Type: filterv1.Type_TYPE_STRINGS},
		{Name: "on", Type: filterv1.Type_TYPE_BOOL},
		{Name: "count", Type: filterv1.Type_TYPE_NUMBER},
		{Name: "map", Type: filterv1.Type_TYPE_STRING_MAP},
		{Name: "any"},
	}}
	for raw, want := range map[string]string{
		`{"need":"a","wait":"5s","list":["x"],"on":true,"count":1.5,"map":{"a":"b"},"any":[{}]}`: "",
		`{}`: "it needs need", `{"need":"c"}`: "is none of", `{"need":1}`: "a string", `{"need":"a","wait":"5"}`: "no duration", `{"need":"a","wait":5}`: "a duration",
		`{"need":"a","list":["x",1]}`: "a list of strings", `{"need":"a","list":"x"}`: "a list of strings", `{"need":"a","on":"true"}`: "true or false",
		`{"need":"a","count":"1"}`: "a number", `{"need":"a","map":{"a":1}}`: "an object", `{"need":"a","nede":1}`: "knows no", `[]`: "no JSON object",
	} {
		var got []string
		for _, p := range Check(s, []byte(raw)) {
			got = append(got, p.GetMessage())
		}
		if text := strings.Join(got, "; "); (text == "") != (want == "") || !strings.Contains(text, want) {
			t.Errorf("%s: %q, want %q", raw, text, want)
		}
	}
}

func TestCache(t *testing.T) {
	c := InRunDir(t.TempDir())
	sum := func(i int) string { return fmt.Sprintf("%064x", i) }
	if _, err := c.Load(sum(1)); !errors.Is(err, ErrUnknown) {
		t.Errorf("an unknown program: %v", err)
	}
	want := &filterv1.Schema{Fields: []*filterv1.Field{{Name: "a", Type: filterv1.Type_TYPE_STRING}}}
	if err := c.Store(sum(1), want); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Load(sum(1)); err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if err := c.Store(sum(2), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Load(sum(2)); err != nil || len(got.GetFields()) != 0 {
		t.Errorf("a plugin that takes nothing: %v, %v", got, err)
	}
	for _, bad := range []string{"", "../../etc/passwd", strings.Repeat("z", 64)} {
		if _, err := c.Load(bad); err == nil || c.Store(bad, want) == nil {
			t.Errorf("%q is taken for a hash", bad)
		}
	}
	if err := os.WriteFile(filepath.Join(c.Dir, sum(3)+suffix), []byte("\xff\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(sum(3)); err == nil {
		t.Error("nonsense is a schema")
	}
	for i := range maxSchemas + 20 {
		if err := c.Store(sum(100+i), want); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "*")); len(left) != maxSchemas {
		t.Errorf("%d files are kept", len(left))
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte("\n\x03\n\x01a"), []byte(`{"a":1}`))
	f.Fuzz(func(t *testing.T, schema, config []byte) {
		s := &filterv1.Schema{}
		if proto.Unmarshal(schema, s) != nil {
			return
		}
		for _, p := range Check(s, config) {
			if p.GetMessage() == "" {
				t.Errorf("a problem without words: %v", p)
			}
		}
	})
}
