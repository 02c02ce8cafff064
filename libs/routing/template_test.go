package routing

import (
	"errors"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func TestTemplates(t *testing.T) {
	for _, c := range []struct {
		template, path string
		want           string // "no", or the variables: "a=x b=y"
	}{
		{"/videos/*/x", "/videos/de/x", ""},
		{"/videos/*/x", "/videos//x", "no"},
		{"/videos/*/x", "/videos/a/b/x", "no"},
		{"/videos/*/x", "/videos/de/x/", "no"},
		{"/videos/*/x", "/videos/a%2Fb/x", ""}, // an encoded slash that is kept is part of a segment
		{"/videos/{country}/{id}", "/videos/de/42", "country=de id=42"},
		{"/videos/{country}/{id}", "/videos/de/", "no"},
		{"/videos/{country}/{id}", "/videos/de", "no"},
		{"/videos/{country=*}/{id=*}/", "/videos/de/42/", "country=de id=42"},
		{"/videos/{country=*}/{id=*}/", "/videos/de/42", "no"},
		{"/{path=videos/*/x}/y", "/videos/a/x/y", "path=videos/a/x"},
		{"/{path=videos/**}", "/videos/", "path=videos/"},
		{"/{path=videos/**}", "/videos/a/b/", "path=videos/a/b/"},
		{"/{path=videos/**}", "/videos", "no"},
		{"/videos/*/*/*.m4s", "/videos/1/hls/a.b.m4s", ""},
		{"/videos/*/*/*.m4s", "/videos/1/hls/.m4s", "no"},
		{"/videos/*/*/*.m4s", "/videos/1/hls/a.mp4", "no"},
		{"/**.mpd", "/a/b/c.mpd", ""},
		{"/**.mpd", "/.mpd", ""},
		{"/**.mpd", "/a/", "no"},
		{"/{p=**}.mpd", "/a/b/c.mpd", "p=a/b/c"},
		{"/{f}.json", "/a.b.json", "f=a.b"},
		{"/{f}.json", "/..json", "no"},
		{"/{f}.json", "/...json", "no"},
		{"/{f}.json", "/....json", "f=..."},
		{"/{p=**}.json", "/a/...json", "no"},
		{"/a/**", "/a/", ""},
		{"/a/**", "/a", "no"},
		{"/a/**", "/a//b", ""},
		{"/a/**/z", "/a//z", ""},
		{"/a/**/z", "/a/b/c/z", ""},
		{"/a/**/z", "/a/z", "no"},
		{"/a/{r=**/z}/end.x", "/a/b/c/z/end.x", "r=b/c/z"},
		{"/a/{r=**}/", "/a/b/c/", "r=b/c"},
		{"/{a}/{b}/{c}/{d}/{e}", "/1/2/3/4/5", "a=1 b=2 c=3 d=4 e=5"},
		{"/(a)+/{x=**}", "/(a)+/$", "x=$"},
	} {
		template, err := ParseTemplate(c.template)
		if err != nil {
			t.Errorf("%s: %v", c.template, err)
			continue
		}
		got := "no"
		if template.matches(c.path) {
			var found []string
			re := regexp.MustCompile(`\A(?:` + template.Expression() + `)\z`)
			m := re.FindStringSubmatch(c.path)
			for i, name := range re.SubexpNames() {
				if name != "" {
					found = append(found, name+"="+m[i])
				}
			}
			got = strings.Join(found, " ")
		}
		if got != c.want {
			t.Errorf("%s on %s: %q, want %q", c.template, c.path, got, c.want)
		}
	}
}

func TestBadTemplates(t *testing.T) {
	for _, c := range []struct{ template, marked, want string }{
		{"", "", `begins with "/"`},
		{"*", "*", `begins with "/"`},
		{"/" + strings.Repeat("a", 255) + "*", "*", "at most 256 bytes"},
		{"/a/b", "/a/b", "no wildcard"},
		{"/a//*", "//", "not empty"},
		{"/a/*b/c", "b", "nothing can follow"},
		{"/a*/c", "*", "begins its segment"},
		{"/a{b}", "{", "begins its segment"},
		{"/*{b}", "{", "cannot stand here"},
		{"/***", "*", "cannot stand here"},
		{"/**/*", "*", "literal text only"},
		{"/**/{a}", "{a}", "literal text only"},
		{"/{a=**/*}", "*", "literal text only"},
		{"/{a=**}/**", "**", "literal text only"},
		{"/{a", "{a", `no "}"`},
		{"/{}", "", "no name"},
		{"/{1a}", "1a", "no name"},
		{"/{a-b}", "a-b", "no name"},
		{"/{abcdefghijklmnopq}", "abcdefghijklmnopq", "no name"},
		{"/{a}/{a}", "a", "already"},
		{"/{a}/{b}/{c}/{d}/{e}/{f}", "f", "at most 5 variables"},
		{"/{a=}", "{a=}", "not empty"},
		{"/{a=x}", "{a=x}", "no wildcard"},
		{"/{a=/*}", "=/", "not empty"},
		{"/{a=*/}", "{a=*/}", "not empty"},
		{"/{a=*x}", "x", "wildcard or literal"},
		{"/{a={b}}", "{", "begins its segment"},
		{"/*/a?b", "?", "written %3F"},
		{"/*/é", "Ã", "written %C3"},
		{"/*/../b", "/..", "never seen"},
		{"/*/%41", "/%41", `"/A" by then`},
		{"/*/%zz", "/%zz", "No path"},
		{"/*%2f", "%2f", "normal form"},
	} {
		_, err := ParseTemplate(c.template)
		var at *TemplateError
		if !errors.As(err, &at) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.template, err, c.want)
			continue
		}
		if marked := c.template[at.Offset : at.Offset+at.Length]; marked != c.marked && c.template != "/*/é" {
			t.Errorf("%s: marks %q, want %q", c.template, marked, c.marked)
		}
	}
}

func TestTemplateRewrites(t *testing.T) {
	template, err := ParseTemplate("/videos/{country}/{id}/{rest=**}")
	if err != nil {
		t.Fatal(err)
	}
	got, err := template.Rewrite("/{id}/in-{country}/{rest}")
	want := []Part{{"/", 1}, {"/in-", 0}, {"/", 2}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %v, want %v", got, err, want)
	}
	if got, err = template.Rewrite("/plain"); err != nil || !reflect.DeepEqual(got, []Part{{"/plain", -1}}) {
		t.Errorf("%v %v", got, err)
	}
	for _, c := range []struct{ text, marked, want string }{
		{"", "", `begins with "/"`},
		{"{id}", "{", `begins with "/"`},
		{"/{no}", "{no}", "no variable no"},
		{"/{id", "{id", `no "}"`},
		{"/a//{id}", "//", "not empty"},
		{"/{id}?x", "?", "written %3F"},
		{"/../{id}", "/../{id}", "differently"},
		{"/.{rest}", "/.{rest}", "differently"},
		{"/{rest}.", "/{rest}.", "differently"},
		{"/%2e/{id}", "/%2e/{id}", "differently"},
		{"/" + strings.Repeat("a", 256), "a", "at most 256"},
	} {
		_, err := template.Rewrite(c.text)
		var at *TemplateError
		if !errors.As(err, &at) || !strings.Contains(err.Error(), c.want) || c.text[at.Offset:at.Offset+at.Length] != c.marked {
			t.Errorf("%s: %+v, want %q", c.text, err, c.want)
		}
	}
	for _, fine := range []string{"/.{id}", "/{id}.", "/{id}.{rest}x", "/{country}{id}"} {
		if _, err := template.Rewrite(fine); err != nil {
			t.Errorf("%s: %v", fine, err)
		}
	}
}

// FuzzTemplate holds that what is taken for a template is an expression, that its own text without signs has its form, and that
// no rewrite of a normal path by it has another normal form than itself.
func FuzzTemplate(f *testing.F) {
	f.Add("/videos/{country}/{id}", "/{id}/{country}", "/videos/de/42")
	f.Add("/{p=**}.mpd", "/x/{p}", "/a/...mpd")
	f.Add("/a/{r=**/z}/end.x", "/{r}.", "/a//z/end.x")
	f.Add("/*/*.m4s", "/", "/%41/..m4s")
	f.Fuzz(func(t *testing.T, text, rewrite, path string) {
		template, err := ParseTemplate(text)
		if err != nil {
			at, ok := err.(*TemplateError)
			if !ok || at.Offset < 0 || at.Length < 0 || at.Offset+at.Length > len(text) {
				t.Fatalf("%q: %+v", text, err)
			}
			return
		}
		re, err := regexp.Compile(`\A(?:` + template.Expression() + `)\z`)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		parts, err := template.Rewrite(rewrite)
		if err != nil {
			at, ok := err.(*TemplateError)
			if !ok || at.Offset < 0 || at.Length < 0 || at.Offset+at.Length > len(rewrite) {
				t.Fatalf("%q: %+v", rewrite, err)
			}
			return
		}
		normal, _, ok := NormalizePath(nil, []byte(path), false, KeepSlashes)
		if !ok || strings.Contains(string(normal), "?") || !template.matches(string(normal)) {
			return
		}
		m := re.FindStringSubmatch(string(normal))
		var made []byte
		for _, p := range parts {
			made = append(made, p.Text...)
			if p.Variable >= 0 {
				made = append(made, m[re.SubexpIndex(template.Variables[p.Variable].Name)]...)
			}
		}
		again, _, ok := NormalizePath(nil, made, false, KeepSlashes)
		if !ok || string(again) != string(made) {
			t.Fatalf("%q of %q by %q: %q is %q", rewrite, normal, text, made, again)
		}
	})
}
