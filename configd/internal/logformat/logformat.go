// Package logformat checks access-log formats and header values for the compiler: the grammar of libs/logformat, with a
// suggestion where a name is nearly right, and the formats that have names.
package logformat

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/libs/logformat"
)

// Check reads a format. nil means that it can be compiled.
func Check(format string) *logformat.Error {
	_, err := logformat.Parse(format)
	var wrong *logformat.Error
	if !errors.As(err, &wrong) {
		return nil
	}
	if wrong.Unknown != "" {
		wrong.Message += hint(wrong.Unknown)
	}
	return wrong
}

func hint(name string) string {
	var names []string
	for _, o := range logformat.Operators() {
		names = append(names, o.Name)
	}
	upper := strings.ToUpper(name)
	if near := diag.Near(upper, names); near != "" {
		return fmt.Sprintf(" Did you mean %%%s%%?", near)
	}
	if slices.Contains(names, upper) {
		return fmt.Sprintf(" Operators are written in capitals: %%%s%%.", upper)
	}
	return ""
}

// Common and Combined are the formats of those names, as web servers have written them for thirty years.
const (
	Common   = `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% - - [%START_TIME(%d/%b/%Y:%H:%M:%S %z)%] "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%" %RESPONSE_CODE% %BYTES_SENT%`
	Combined = Common + ` "%REQ(REFERER)%" "%REQ(USER-AGENT)%"`
)

// JSON is the format "json": fields in order with their operators.
func JSON() [][2]string {
	return [][2]string{
		{"start_time", "%START_TIME%"},
		{"method", "%REQ(:METHOD)%"},
		{"path", "%REQ(:PATH)%"},
		{"authority", "%REQ(:AUTHORITY)%"},
		{"protocol", "%PROTOCOL%"},
		{"response_code", "%RESPONSE_CODE%"},
		{"response_flags", "%RESPONSE_FLAGS%"},
		{"response_code_details", "%RESPONSE_CODE_DETAILS%"},
		{"bytes_received", "%BYTES_RECEIVED%"},
		{"bytes_sent", "%BYTES_SENT%"},
		{"duration", "%DURATION%"},
		{"response_duration", "%RESPONSE_DURATION%"},
		{"downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"},
		{"upstream_cluster", "%UPSTREAM_CLUSTER%"},
		{"upstream_host", "%UPSTREAM_HOST%"},
		{"route_name", "%ROUTE_NAME%"},
		{"request_id", "%REQ(X-REQUEST-ID)%"},
		{"user_agent", "%REQ(USER-AGENT)%"},
	}
}
