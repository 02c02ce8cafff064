package main

import (
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{
			"a daemon's manual", "NAME\n\n\tx - does\n\n# DESCRIPTION\n\n.dot -f\n",
			".TH X 8\n.SH NAME\n.PP\n.nf\n\tx \\- does\n\n.fi\n.SH DESCRIPTION\n.PP\n\\&.dot \\-f\n",
		},
		{"help without headings", "x does.\n\nUsage:\n  x [flags]\n", ".TH X 8\n.SH NAME\nx\n.SH DESCRIPTION\nx does.\n.PP\nUsage:\n.nf\n  x [flags]\n"},
		{"a backslash", "a\\b\n", ".TH X 8\n.SH NAME\nx\n.SH DESCRIPTION\na\\eb\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			if err := write(&out, strings.NewReader(test.in), "x", "8"); err != nil || out.String() != test.want {
				t.Errorf("%q, %v; want %q", out.String(), err, test.want)
			}
		})
	}
}
