package hello

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	suitev1 "retinue.dev/services/api/suite/v1"
)

func TestCheck(t *testing.T) {
	mine := &suitev1.Hello{Daemon: "proxyd", Contract: "config/v1", Revision: 5, MinRevision: 3, Version: "2.0"}
	theirs := func(revision, least uint32) *suitev1.Hello {
		return &suitev1.Hello{Daemon: "configd", Contract: "config/v1", Revision: revision, MinRevision: least, Version: "1.0"}
	}
	for _, test := range []struct {
		name   string
		theirs *suitev1.Hello
		want   string // in the refusal; "" for none
	}{
		{"the same", theirs(5, 3), ""},
		{"one older", theirs(4, 2), ""},
		{"one newer", theirs(6, 4), ""},
		{"too old", theirs(2, 1), "upgrade configd"},
		{"too new", theirs(9, 6), "upgrade proxyd"},
		{"silent", nil, "did not say hello"},
		{"another contract", &suitev1.Hello{Daemon: "statsd", Contract: "stats/v1", Revision: 5}, "wrong socket"},
	} {
		err := Check(mine, test.theirs)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.want != "" && (status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}
