package pluginsdk

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// Duration is a field of a configuration that is written "250ms".
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}

// schemaOf reads the schema off a configuration's struct: names from json tags, and from the tag plugin "required", from doc and
// choices what they say.
func schemaOf(t reflect.Type) (*filterv1.Schema, error) {
	s := &filterv1.Schema{}
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("pluginsdk: a configuration is a struct, not %s", t)
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		field := &filterv1.Field{Name: name, Type: typeOf(f.Type), Required: f.Tag.Get("plugin") == "required", Description: f.Tag.Get("doc")}
		if c := f.Tag.Get("choices"); c != "" {
			field.Choices = strings.Split(c, ",")
		}
		s.Fields = append(s.Fields, field)
	}
	return s, nil
}

func typeOf(t reflect.Type) filterv1.Type {
	if t.Kind() == reflect.Pointer { // optional
		t = t.Elem()
	}
	if t == reflect.TypeFor[Duration]() {
		return filterv1.Type_TYPE_DURATION
	}
	switch t.Kind() {
	case reflect.String:
		return filterv1.Type_TYPE_STRING
	case reflect.Bool:
		return filterv1.Type_TYPE_BOOL
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint32, reflect.Uint64, reflect.Float64:
		return filterv1.Type_TYPE_NUMBER
	case reflect.Slice:
		if t.Elem().Kind() == reflect.String {
			return filterv1.Type_TYPE_STRINGS
		}
	case reflect.Map:
		if t.Elem().Kind() == reflect.String {
			return filterv1.Type_TYPE_STRING_MAP
		}
	}
	return filterv1.Type_TYPE_UNSPECIFIED
}

// Invalid is a complaint about one field of a configuration: it becomes a diagnostic with file and line.
type Invalid struct {
	Field string
	Why   string
}

// Error implements error.
func (i *Invalid) Error() string {
	if i.Field == "" {
		return i.Why
	}
	return i.Field + ": " + i.Why
}
