package filter

import (
	"regexp"
	"strings"
	"testing"

	"retinue.dev/libs/routing"
)

func TestTemplateRewrite(t *testing.T) {
	for _, c := range []struct{ match, text, path, want string }{
		{"/videos/{country}/{id}", "/{id}/{country}", "/videos/de/42", "/42/de"},
		{"/videos/{country}/{id}", "/{id}/{country}/{id}", "/videos/a%2Fb/4", "/4/a%2Fb/4"},
		{"/{path=a/*}/x/{rest=**}", "/y/{path}/{rest}", "/a/b/x/", "/y/a/b/"},
		{"/{path=a/*}/x/{rest=**}", "/y/{path}/{rest}", "/a/b/x/c//d", "/y/a/b/c//d"},
		{"/v/{p=**}.mpd", "/{p}.m4s", "/v/a/b.mpd", "/a/b.m4s"},
		{"/v/{p=**/c}/d.e", "/{p}", "/v/a/b/c/d.e", "/a/b/c"},
		{"/{f}.json", "/{f}", "/a.b.json", "/a.b"},
		{"/{f}.json", "/{f}", "/...json", "/...json"}, // not of the form: it stays
		{"/{a}/b", "/x", "/a/c", "/a/c"},
		{"/{a}/b/", "/{a}", "/a/b/", "/a"},
		{"/{a}/**", "/{a}", "/a", "/a"},
		{"/a/*", "/{a", "", "template_rewrite"},
		{"", "/", "", "needs a match"},
	} {
		w, err := compileTemplate(c.match, c.text)
		if err != nil {
			if c.path != "" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", c.match, err)
			}
			continue
		}
		if got := string(w.apply([]byte("-"), []byte(c.path))); got != "-"+c.want {
			t.Errorf("%s by %s: %s, want %s", c.path, c.text, got[1:], c.want)
		}
	}
}

// FuzzTemplateFind holds the places of variables to the groups of the template's expression.
func FuzzTemplateFind(f *testing.F) {
	f.Add("/videos/{country}/{id}", "/videos/de/42")
	f.Add("/{path=a/*}/x/{rest=**}", "/a/b/x/")
	f.Add("/v/{p=**/c}/d.e", "/v/a/b/c/d.e")
	f.Add("/{f}.json", "/...json")
	f.Add("/{a}/**/", "/a//")
	f.Fuzz(func(t *testing.T, text, path string) {
		template, err := routing.ParseTemplate(text)
		if err != nil {
			return
		}
		w := templateRewrite{template: template, tail: []byte(template.Tail)}
		re := regexp.MustCompile(`\A(?:` + template.Expression() + `)\z`)
		groups := re.FindStringSubmatchIndex(path)
		if groups != nil && template.Dots() {
			segment := strings.TrimSuffix(path, template.Tail)
			if segment = segment[strings.LastIndexByte(segment, '/')+1:]; segment == "." || segment == ".." {
				groups = nil
			}
		}
		var places [routing.MaxVariables][2]int
		if found := w.find([]byte(path), &places); found != (groups != nil) {
			t.Fatalf("%q on %q: %v, its expression %v", text, path, found, groups)
		}
		if groups == nil {
			return
		}
		for i, v := range template.Variables {
			if g := re.SubexpIndex(v.Name); places[i] != [2]int{groups[2*g], groups[2*g+1]} {
				t.Fatalf("%q on %q: %s is %v, its group %v", text, path, v.Name, places[i], groups[2*g:2*g+2])
			}
		}
	})
}
