// Package settings compares what a plugin's config { } holds with what the plugin says that it takes, and keeps what plugins have
// said. restartd asks it when it starts a plugin, configd when a configuration is checked without starting anything.
package settings

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// Check compares a configuration, one JSON object, with a schema. Problems are in the order of their fields; the field of one about
// the whole is empty.
func Check(s *filterv1.Schema, raw []byte) (problems []*filterv1.Problem) {
	config := map[string]any{}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &config); err != nil {
			return []*filterv1.Problem{{Message: "the configuration is no JSON object: " + err.Error()}}
		}
	}
	complain := func(field, format string, args ...any) {
		problems = append(problems, &filterv1.Problem{Field: field, Message: fmt.Sprintf(format, args...)})
	}
	known := map[string]*filterv1.Field{}
	var names []string
	for _, f := range s.GetFields() {
		known[f.GetName()] = f
		names = append(names, f.GetName())
		if _, written := config[f.GetName()]; f.GetRequired() && !written {
			complain("", "it needs %s: %s", f.GetName(), f.GetDescription())
		}
	}
	for name, v := range config {
		f := known[name]
		switch {
		case f != nil:
			if why := fits(f, v); why != "" {
				complain(name, "%s", why)
			}
		case !s.GetOpen() && len(names) == 0:
			complain(name, "the plugin takes no configuration")
		case !s.GetOpen():
			complain(name, "the plugin knows no %q; it takes %s", name, strings.Join(names, ", "))
		}
	}
	slices.SortFunc(problems, func(a, b *filterv1.Problem) int { return strings.Compare(a.GetField(), b.GetField()) })
	return problems
}

// fits says why a value is not of the field's type; "" when it is.
func fits(f *filterv1.Field, v any) string {
	text, isText := v.(string)
	switch f.GetType() {
	case filterv1.Type_TYPE_STRING:
		if !isText {
			return "a string is wanted"
		}
		if c := f.GetChoices(); len(c) > 0 && !slices.Contains(c, text) {
			return fmt.Sprintf("%q is none of %s", text, strings.Join(c, ", "))
		}
	case filterv1.Type_TYPE_NUMBER:
		if _, ok := v.(float64); !ok {
			return "a number is wanted"
		}
	case filterv1.Type_TYPE_BOOL:
		if _, ok := v.(bool); !ok {
			return "true or false is wanted"
		}
	case filterv1.Type_TYPE_DURATION:
		if !isText {
			return "a duration such as \"250ms\" is wanted"
		}
		if _, err := time.ParseDuration(text); err != nil {
			return fmt.Sprintf("%q is no duration such as \"250ms\"", text)
		}
	case filterv1.Type_TYPE_STRINGS:
		list, ok := v.([]any)
		for _, e := range list {
			_, is := e.(string)
			ok = ok && is
		}
		if !ok {
			return "a list of strings is wanted"
		}
	case filterv1.Type_TYPE_STRING_MAP:
		m, ok := v.(map[string]any)
		for _, e := range m {
			_, is := e.(string)
			ok = ok && is
		}
		if !ok {
			return "an object of strings is wanted"
		}
	}
	return ""
}
