package logformat

import (
	"errors"
	"reflect"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		format string
		want   []Segment
	}{
		{"", nil},
		{"100%% of %PROTOCOL%", []Segment{{Text: "100% of "}, {ID: Protocol}}},
		{"%RESPONSE_CODE% %DURATION%ms", []Segment{
			{ID: ResponseCode, Numeric: true}, {Text: " "}, {ID: Duration, Numeric: true}, {Text: "ms"},
		}},
		{"%REQ(X-A?:PATH):10%", []Segment{{ID: Req, Header: "x-a", Other: ":path", Length: 10}}},
		{"%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%|", []Segment{{ID: StartTime, Text: "%Y-%m-%dT%H:%M:%S.%3fZ"}, {Text: "|"}}},
		{"%GRPC_STATUS%%GRPC_STATUS(NUMBER)%", []Segment{{ID: GRPCStatus}, {ID: GRPCStatus, Text: "NUMBER"}}},
		{"%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%", []Segment{{ID: CommonDuration, Numeric: true, Text: "US_TX_BEG:US_RX_BEG:us"}}},
		{"%START_TIME%", []Segment{{ID: StartTime}}},
		{"%START_TIME(%%)%%%", []Segment{{ID: StartTime, Text: "%%"}, {Text: "%"}}},
	} {
		got, err := Parse(test.format)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", test.format, got, err, test.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct {
		format         string
		offset, length int
		later          bool
		unknown        string
	}{
		{"a %RESPONSE_COD% b", 2, 14, false, "RESPONSE_COD"},
		{"a %FILTER_STATE%", 2, 14, true, ""},
		{"%GRPC_STATUS(CAMEL)%", 0, 20, false, ""},
		{"%GRPC_STATUS_NUMBER(NUMBER)%", 0, 28, false, ""},
		{"%COMMON_DURATION%", 0, 17, false, ""},
		{"%COMMON_DURATION(DS_RX_BEG:DS_TX_END)%", 0, 38, false, ""},
		{"%COMMON_DURATION(DS_RX_BEG:NOON:ms)%", 0, 36, false, ""},
		{"%COMMON_DURATION(DS_RX_BEG:DS_TX_END:s)%", 0, 40, false, ""},
		{"%PROTOCOL(x)%", 0, 13, false, ""},
		{"%REQ%", 0, 5, false, ""},
		{"%REQ(a b)%", 0, 10, false, ""},
		{"%REQ(a?)%", 0, 9, false, ""},
		{"%DURATION:5%", 0, 12, false, ""},
		{"%REQ(A):0%", 0, 10, false, ""},
		{"%REQ(A):65537%", 0, 14, false, ""},
		{"%REQ(A):%", 0, 8, false, ""},
		{"50% off", 2, 1, false, ""},
		{"%", 0, 1, false, ""},
		{"%START_TIME(%Q)%", 0, 16, false, ""},
		{"%START_TIME(%3)%", 0, 16, false, ""},
		{"%START_TIME(\n)%", 0, 15, false, ""},
		{"%REQ(a", 0, 6, false, ""},
	} {
		_, err := Parse(test.format)
		var at *Error
		if !errors.As(err, &at) {
			t.Errorf("Parse(%q) took it", test.format)
			continue
		}
		if at.Offset != test.offset || at.Length != test.length || at.Later != test.later || at.Unknown != test.unknown {
			t.Errorf("Parse(%q) marks %d+%d later %v unknown %q, want %d+%d %v %q", test.format, at.Offset, at.Length, at.Later, at.Unknown, test.offset, test.length, test.later, test.unknown)
		}
	}
}

// TestTable holds names and numbers of operators together: each once.
func TestTable(t *testing.T) {
	seen := map[ID]bool{}
	for _, o := range Operators() {
		if o.ID == Literal || seen[o.ID] {
			t.Errorf("%s has number %d, which is taken", o.Name, o.ID)
		}
		seen[o.ID] = true
	}
	if len(seen) != int(Hostname) {
		t.Errorf("the table has %d operators, the numbers go to %d", len(seen), Hostname)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "%", "%%", "%REQ(X?Y):3%", "%START_TIME(%%)%", "%a(%", "%RESPONSE_CODE%%", "%START_TIME(%9f)%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		segments, err := Parse(s)
		var at *Error
		switch {
		case errors.As(err, &at):
			if at.Offset < 0 || at.Length < 1 || at.Offset+at.Length > len(s) {
				t.Errorf("Parse(%q) marks %d+%d", s, at.Offset, at.Length)
			}
		case err != nil:
			t.Errorf("Parse(%q): %T", s, err)
		default:
			literal := 0
			for _, g := range segments {
				if g.ID == Literal {
					literal += len(g.Text)
				}
			}
			if literal > len(s) {
				t.Errorf("Parse(%q) made %d literal bytes of it", s, literal)
			}
		}
	})
}
