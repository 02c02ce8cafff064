package jwt

import (
	"fmt"

	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// Bounds of a tree of requirements.
const (
	maxLevels = 8 // of lists
	maxLeaves = 64
)

type requirementKind uint8

const (
	ofProvider requirementKind = iota
	ofAny
	ofAll
)

// requirement is a tree: a token of a provider, or several requirements of which one or each is met. Immutable.
type requirement struct {
	kind      requirementKind
	provider  *Provider
	audiences [][]byte
	of        []requirement
	// Of any: lenient has it met where every token is missing, failing where they are refused too.
	lenient, failing bool
}

// newRequirement reads what a filter requires: its tree, or one of the two lists that stand for one of a single level.
func newRequirement(o *configv1.JwtFilter, providers map[string]*Provider) (requirement, error) {
	root, written := o.GetRequires(), 0
	for kind, list := range [][]*configv1.JwtRequirement{o.GetRequiresAny(), o.GetRequiresAll()} {
		if len(list) == 0 {
			continue
		}
		written++
		of := &configv1.JwtRequirementList{}
		for _, r := range list {
			of.Requirements = append(of.Requirements, &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_Provider{Provider: r}})
		}
		root = &configv1.JwtRequirements{AllowMissing: o.GetAllowMissing(), AllowMissingOrFailed: o.GetAllowMissingOrFailed()}
		if root.Kind = (&configv1.JwtRequirements_Any{Any: of}); kind == 1 {
			root.Kind = &configv1.JwtRequirements_All{All: of}
		}
	}
	if o.GetRequires() != nil {
		written++
	}
	if written != 1 {
		return requirement{}, fmt.Errorf("it has one of requires, requires_any and requires_all")
	}
	leaves := 0
	return buildRequirement(root, providers, 1, &leaves)
}

func buildRequirement(o *configv1.JwtRequirements, providers map[string]*Provider, depth int, leaves *int) (r requirement, err error) {
	var of []*configv1.JwtRequirements
	switch k := o.GetKind().(type) {
	case *configv1.JwtRequirements_Provider:
		if *leaves++; *leaves > maxLeaves {
			return r, fmt.Errorf("it names more than %d providers", maxLeaves)
		}
		r.provider = providers[k.Provider.GetProvider()]
		if r.provider == nil {
			return r, fmt.Errorf("jwt_provider %q is not there", k.Provider.GetProvider())
		}
		r.audiences = r.provider.audiences
		if len(k.Provider.GetAudiences()) > 0 {
			r.audiences = nil
		}
		for _, a := range k.Provider.GetAudiences() {
			r.audiences = append(r.audiences, []byte(a))
		}
		if o.GetAllowMissing() || o.GetAllowMissingOrFailed() {
			return r, fmt.Errorf("what is missing is allowed of any alone")
		}
		return r, nil
	case *configv1.JwtRequirements_Any:
		r.kind, of = ofAny, k.Any.GetRequirements()
		r.failing = o.GetAllowMissingOrFailed()
		r.lenient = o.GetAllowMissing() || r.failing
	case *configv1.JwtRequirements_All:
		r.kind, of = ofAll, k.All.GetRequirements()
		if o.GetAllowMissing() || o.GetAllowMissingOrFailed() {
			return r, fmt.Errorf("what is missing is allowed of any alone")
		}
	default:
		return r, fmt.Errorf("a requirement is of a kind that this proxyd does not have")
	}
	switch {
	case len(of) == 0:
		return r, fmt.Errorf("a requirement has nothing in it")
	case depth > maxLevels:
		return r, fmt.Errorf("its requirements have more than %d levels", maxLevels)
	}
	for _, child := range of {
		built, err := buildRequirement(child, providers, depth+1, leaves)
		if err != nil {
			return r, err
		}
		r.of = append(r.of, built)
	}
	return r, nil
}

// judge tells whether the requirement is met, with the tokens in results, or where to wait for keys. patient lets it wait for a key
// that a set does not have.
func (f *Filter) judge(s *stream.Stream, patient bool) (status, *list) {
	mine := &f.workers[s.Worker.ID]
	mine.results = mine.results[:0]
	return mine.meets(&f.required, s, patient)
}

// meets judges a part of the tree. The results of one that is not met are dropped.
func (mine *scratch) meets(r *requirement, s *stream.Stream, patient bool) (st status, on *list) {
	before := len(mine.results)
	switch r.kind {
	case ofProvider:
		if st = mine.satisfy(r, s, patient); st == waiting {
			on = &r.provider.workers[s.Worker.ID].waiting
		}
	case ofAll:
		for i := range r.of {
			if st, on = mine.meets(&r.of[i], s, patient); st != good {
				break
			}
		}
	case ofAny:
		if st, on = mine.meetsOne(r, s, patient); st == good {
			return good, nil
		}
	}
	if st != good {
		mine.results = mine.results[:before]
	}
	return st, on
}

// meetsOne is meets of any: the first that is met counts, else the first to wait for, else what says most about a token.
func (mine *scratch) meetsOne(r *requirement, s *stream.Stream, patient bool) (worst status, on *list) {
	worst = missing
	for i := range r.of {
		st, where := mine.meets(&r.of[i], s, patient)
		switch {
		case st == good:
			return good, nil
		case st == waiting:
			if on == nil {
				on = where
			}
		case worst == missing, worst == unknownIssuer && st != missing:
			worst = st
		}
	}
	switch {
	case on != nil:
		return waiting, on
	case r.failing, r.lenient && worst == missing:
		return good, nil
	}
	return worst, nil
}

// satisfy verifies the tokens of a request for one provider. All of them must be good: what the upstream takes is one of them.
func (mine *scratch) satisfy(r *requirement, s *stream.Stream, patient bool) status {
	p := r.provider
	found := find(p.workers[s.Worker.ID].found[:0], p.places, &s.Request)
	p.workers[s.Worker.ID].found = found
	switch {
	case len(found) == 0:
		return missing
	case len(found) > maxTokens:
		return multipleTokens
	}
	for i, raw := range found {
		v, st := p.verify(s.Worker, raw, r.audiences, patient)
		if st != good {
			return st
		}
		if i == 0 {
			mine.results = append(mine.results, result{p, v})
		}
	}
	return good
}
