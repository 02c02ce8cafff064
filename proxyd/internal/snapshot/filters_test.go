package snapshot

import (
	"testing"

	"retinue.dev/proxyd/internal/tlstransport"
	configv1 "retinue.dev/services/api/config/v1"
)

const users = "/users"

func usersObject(realm string) *configv1.Object {
	return object("filter", "basic_auth.a", &configv1.Filter{Name: "basic_auth.a", Kind: &configv1.Filter_BasicAuth{BasicAuth: &configv1.BasicAuthFilter{
		UsersFile: users, Realm: realm,
	}}})
}

// filtered is an HTTP listener with filters; another cluster changes nothing about it.
func filtered(other string, filters ...*configv1.Object) []*configv1.Object {
	list := []*configv1.Object{clusterObject("a", "127.0.0.1:1"), clusterObject("b", other)}
	h := &configv1.Http{Name: "web"}
	for _, f := range filters {
		list = append(list, f)
		h.Filters = append(h.Filters, &configv1.FilterUse{Filter: f.GetName()})
	}
	return append(list, object("http", "web", h), httpObjects("web", "a")[1])
}

// A filter outlives snapshots that change nothing about its listener, takes new secrets after them, and stays itself when the
// listener changes later.
func TestFiltersStay(t *testing.T) {
	b := newBuilder()
	b.Secrets = &tlstransport.Secrets{Files: map[string][]byte{users: []byte("ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n")}}
	basic := usersObject("here")
	first := mustBuild(t, b, nil, filtered("127.0.0.1:2", basic)...)
	second := mustBuild(t, b, first, filtered("127.0.0.1:3", basic)...)
	if err := second.Update(&tlstransport.Secrets{Files: map[string][]byte{}}); err == nil {
		t.Error("secrets without the users are taken")
	}
	third := mustBuild(t, b, second, filtered("127.0.0.1:3", basic, object("filter", "buffer.b", &configv1.Filter{
		Name: "buffer.b", Kind: &configv1.Filter_Buffer{Buffer: &configv1.BufferFilter{MaxRequestBytes: 1}},
	}))...)
	part := func(s *Snapshot) any { return s.parts["filter\x00basic_auth.a"].filter }
	if part(second) != part(first) || part(third) != part(first) {
		t.Error("the filter is another one")
	}
	fourth := mustBuild(t, b, third, filtered("127.0.0.1:3", usersObject("there"))...)
	if part(fourth) == part(first) {
		t.Error("a filter that changed is the one before")
	}
	if fifth := mustBuild(t, b, fourth, filtered("127.0.0.1:3")...); fifth.parts["filter\x00basic_auth.a"] != nil {
		t.Error("a filter that went is kept")
	}
}
