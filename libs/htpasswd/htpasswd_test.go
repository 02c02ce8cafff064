package htpasswd

import (
	"strings"
	"testing"
)

// "test" and "secret", by htpasswd -s.
const file = "# users\n\njoe:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=\r\nann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n"

func TestCheck(t *testing.T) {
	u, err := Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		user, password string
		want           bool
	}{
		{"joe", "test", true}, {"ann", "secret", true}, {"joe", "secret", false}, {"joe", "", false}, {"bob", "test", false}, {"", "", false},
	} {
		if got := u.Check([]byte(row.user), []byte(row.password)); got != row.want {
			t.Errorf("%s %s: %v", row.user, row.password, got)
		}
	}
	user, password := []byte("joe"), []byte("test")
	if n := testing.AllocsPerRun(100, func() { u.Check(user, password) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":         "",
		"only a comment":  "# joe:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=",
		"no colon":        "joe",
		"no user":         ":{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=",
		"bcrypt":          "joe:$2y$05$abcdefghijklmnopqrstuuKvRV6kz0HgGkVvN6e",
		"a short digest":  "joe:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M",
		"a wrong digest":  "joe:{SHA}!UqP5cyxm6YcTAhz05Hph5gvu9M=",
		"joe twice":       "joe:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=\njoe:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=",
		"a control":       "j\toe:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=",
		"a very long one": strings.Repeat("j", 300) + ":{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=",
	} {
		_, err := Parse([]byte(text))
		if err == nil {
			t.Errorf("%s is accepted", name)
		} else if strings.Contains(err.Error(), "qUqP5") || strings.Contains(err.Error(), "abcdef") {
			t.Errorf("%s: the error shows a secret: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(file))
	f.Add([]byte("a:{SHA}"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if u, err := Parse(content); err == nil && len(u.digests) == 0 {
			t.Error("no users and no error")
		}
	})
}
