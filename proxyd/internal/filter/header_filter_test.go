package filter

import (
	"testing"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

func TestBuildRefuses(t *testing.T) {
	for name, f := range map[string]*configv1.Filter{
		"no type":        {Name: "x"},
		"framing header": {Kind: &configv1.Filter_Header{Header: &configv1.HeaderFilter{Request: &configv1.HeaderOps{Remove: []string{"content-length"}}}}},
		"a bad value":    {Kind: &configv1.Filter_Header{Header: &configv1.HeaderFilter{Response: &configv1.HeaderOps{Set: []*configv1.Header{{Name: "x", Value: "a\nb"}}}}}},
	} {
		if built, err := Build(f, &Env{Workers: 1}); err == nil {
			t.Errorf("%s: built %v", name, built)
		}
	}
}

// The parts that are not routes: whose filters run for requests without a route.
func TestFiltersWithoutRoute(t *testing.T) {
	named := map[string]stream.Factory{"host": headerFactory{{scratch: []byte("host")}}, "http": headerFactory{{scratch: []byte("http")}}}
	c := &Compiler{Filters: func(uses []*configv1.FilterUse) (list []stream.Factory, err error) {
		for _, u := range uses {
			list = append(list, named[u.GetFilter()])
		}
		return list, nil
	}}
	routes, err := c.Compile(&configv1.Http{
		Filters: []*configv1.FilterUse{{Filter: "http"}},
		VirtualHosts: []*configv1.VirtualHost{
			{Name: "a", Domains: []string{"a.example"}, Filters: []*configv1.FilterUse{{Filter: "http"}, {Filter: "host"}}},
			{Name: "b", Domains: []string{"b.example"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !routes.Filtered() {
		t.Error("Filtered is false")
	}
	for host, want := range map[string]int{"a.example": 2, "b.example": 0, "c.example": 1} {
		var s stream.Stream
		s.Request.SetAuthority([]byte(host))
		s.Request.SetMethodID(header.MethodGet)
		s.Request.SetPath([]byte("/"))
		var r Router
		r.Begin(&s, NewShared(nil), routes)
		if list := r.RouteFilters(&s); len(list) != want {
			t.Errorf("%s: %d filters, want %d", host, len(list), want)
		}
	}
}
