package jwt

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestDocument(t *testing.T) {
	many := func(n int, one, separator string) string {
		return strings.TrimSuffix(strings.Repeat(one+separator, n), separator)
	}
	names := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, `"`+strings.Repeat("a", i+1)+`":1`)
		}
		return "{" + strings.Join(list, ",") + "}"
	}
	for _, test := range []struct {
		name, source string
		want         bool
	}{
		{"empty object", " {} ", true},
		{"all kinds", "{\"a\":null,\"b\":[true,false,-0.5e+3,0,{}],\t\"c\":\"\\u00e4\\ud83d\\ude00\\n\"\r\n}", true},
		{"nothing", "", false},
		{"not an object", `[]`, false},
		{"two", `{}{}`, false},
		{"trailing comma", `{"a":1,}`, false},
		{"trailing comma of an array", `{"a":[1,]}`, false},
		{"no colon", `{"a" 1}`, false},
		{"no quote", `{a:1}`, false},
		{"a comment", `{/**/}`, false},
		{"twice", `{"a":1,"a":2}`, false},
		{"twice, once escaped", `{"a":1,"\u0061":2}`, false},
		{"twice in an object within", `{"a":{"b":1,"b":1}}`, false},
		{"the same in two objects", `{"a":{"b":1},"b":{"b":1}}`, true},
		{"leading zero", `{"a":01}`, false},
		{"plus", `{"a":+1}`, false},
		{"bare fraction", `{"a":1.}`, false},
		{"bare exponent", `{"a":1e}`, false},
		{"NaN", `{"a":NaN}`, false},
		{"half a word", `{"a":tru}`, false},
		{"open string", `{"a":"`, false},
		{"open escape", `{"a":"\`, false},
		{"unknown escape", `{"a":"\x"}`, false},
		{"short unit", `{"a":"\u00"}`, false},
		{"bad unit", `{"a":"\u00g0"}`, false},
		{"half a pair", `{"a":"\ud83d"}`, false},
		{"half a pair and another", `{"a":"\ud83d\u0041"}`, false},
		{"low half", `{"a":"\ude00"}`, false},
		{"control character", "{\"a\":\"\n\"}", false},
		{"not UTF-8", "{\"a\":\"\xff\"}", false},
		{"NUL is a character", `{"a":"\u0000"}`, true},
		{"deep", `{"a":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`, true},
		{"too deep", `{"a":` + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1) + `}`, false},
		{"wide", `{"a":[` + many(maxValues-2, "1", ",") + `]}`, true},
		{"too wide", `{"a":[` + many(maxValues-1, "1", ",") + `]}`, false},
		{"members", names(maxMembers), true},
		{"too many members", names(maxMembers + 1), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var d document
			if got := d.parse([]byte(test.source)); got != test.want {
				t.Errorf("it is %v", got)
			}
		})
	}
	var d document
	if !d.parse([]byte(`{"a":{"b":[1,"x"]},"c":"\u00e4"}`)) {
		t.Fatal("refused")
	}
	b := d.member(d.member(d.root(), []byte("a")), []byte("b"))
	if b == nil || string(d.text(b)) != `[1,"x"]` || string(d.text(d.member(d.root(), []byte("c")))) != "ä" || d.member(b, []byte("c")) != nil {
		t.Error("members are not found")
	}
}

// What is accepted is accepted by encoding/json, which says the same of its strings.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,"x",null,true]},"c":"\u00e4\ud83d\ude00","d":-1.5e3}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, source []byte) {
		var d document
		if !d.parse(source) {
			return
		}
		var want map[string]any
		if err := json.Unmarshal(source, &want); err != nil {
			t.Fatalf("encoding/json says %v", err)
		}
		if !utf8.Valid(d.decoded) || len(d.decoded) > len(source) || len(d.values) > maxValues {
			t.Fatalf("%d bytes, %d values", len(d.decoded), len(d.values))
		}
		n := 0
		for i := d.root().first; i != 0; i = d.values[i].next {
			v := &d.values[i]
			n++
			name := string(d.decoded[v.name.from:v.name.to])
			got, there := want[name]
			if s, ok := got.(string); !there || ok != (v.kind == text) || ok && s != string(d.text(v)) {
				t.Fatalf("%q is %q and not %v", name, d.text(v), got)
			}
		}
		if n != len(want) {
			t.Fatalf("%d members and not %d", n, len(want))
		}
	})
}
