package counters

import statsv1 "retinue.dev/services/api/stats/v1"

// detectedFields count what the outlier detection found, whether it was enforced or not, in the order of the ejections.
func detectedFields() (fields []*statsv1.Field) {
	for _, rule := range [...][2]string{
		{"consecutive_5xx", "runs of 5xx"},
		{"consecutive_gateway_failure", "runs of 502, 503 and 504"},
		{"success_rate", "success rates below the others'"},
		{"failure_percentage", "failure percentages that were reached"},
		{"consecutive_local_origin_failure", "runs of requests without an answer"},
	} {
		fields = append(fields, field(counter, "outlier_detection_ejections_detected_"+rule[0], rule[1]+" that were found, enforced or not"))
	}
	return fields
}
