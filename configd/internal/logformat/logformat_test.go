package logformat

import "testing"

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		format         string
		offset, length int // of the mistake; -1: none
		later          bool
	}{
		{"", -1, 0, false},
		{"100%% of %PROTOCOL%", -1, 0, false},
		{"%REQ(X-A?:PATH):10% %START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%", -1, 0, false},
		{Combined, -1, 0, false},
		{"a %RESPONSE_COD% b", 2, 14, false},
		{"a %FILTER_STATE%", 2, 14, true},
		{"%PROTOCOL(x)%", 0, 13, false},
		{"%REQ%", 0, 5, false},
		{"%REQ(a b)%", 0, 10, false},
		{"%DURATION:5%", 0, 12, false},
		{"%REQ(A):0%", 0, 10, false},
		{"50% off", 2, 1, false},
		{"%", 0, 1, false},
		{"%START_TIME(%Q)%", 0, 16, false},
		{"%REQ(a", 0, 6, false},
	} {
		err := Check(c.format)
		if (err == nil) != (c.offset < 0) {
			t.Errorf("Check(%q) = %v", c.format, err)
		} else if err != nil && (err.Offset != c.offset || err.Length != c.length || err.Later != c.later) {
			t.Errorf("Check(%q) marks %d+%d later %v, want %d+%d %v (%s)", c.format, err.Offset, err.Length, err.Later, c.offset, c.length, c.later, err.Message)
		}
	}
	for _, f := range JSON() {
		if err := Check(f[1]); err != nil {
			t.Errorf("format json, field %s: %v", f[0], err)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, s := range []string{"", "%", "%%", Combined, "%REQ(X?Y):3%", "%START_TIME(%%)%", "%a(%", "%RESPONSE_CODE%%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := Check(s); err != nil && (err.Offset < 0 || err.Length < 1 || err.Offset+err.Length > len(s)) {
			t.Errorf("Check(%q) marks %d+%d", s, err.Offset, err.Length)
		}
	})
}
