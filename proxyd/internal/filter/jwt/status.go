package jwt

import "strings"

// status is how a token, or a requirement, was judged.
type status uint8

// The statuses, in Envoy's words (texts). waiting is none that a client sees: the keys are not here yet.
const (
	good status = iota
	missing
	notYetValid
	expired
	badFormat
	badHeaderBase64
	badHeaderJSON
	badAlgorithm
	unknownAlgorithm
	badKeyID
	critical
	badPayloadBase64
	badPayloadJSON
	badIssuer
	badSubject
	badExpiration
	expirationRange
	badNotBefore
	notBeforeRange
	badAudience
	badSignatureBase64
	unknownIssuer
	audienceNotAllowed
	verificationFailed
	multipleTokens
	noMatchingKey
	fetchFailed
	waiting
)

var texts = [...]string{
	missing:            "Jwt is missing",
	notYetValid:        "Jwt not yet valid",
	expired:            "Jwt is expired",
	badFormat:          "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
	badHeaderBase64:    "Jwt header is an invalid Base64url encoded",
	badHeaderJSON:      "Jwt header is an invalid JSON",
	badAlgorithm:       "Jwt header [alg] field is required and must be a string",
	unknownAlgorithm:   "Jwt header [alg] is not supported",
	badKeyID:           "Jwt header [kid] field is not a string",
	critical:           "Jwt header [crit] is not supported", // ours: RFC 7515, 4.1.11
	badPayloadBase64:   "Jwt payload is an invalid Base64url encoded",
	badPayloadJSON:     "Jwt payload is an invalid JSON",
	badIssuer:          "Jwt payload [iss] field is not a string",
	badSubject:         "Jwt payload [sub] field is not a string",
	badExpiration:      "Jwt payload [exp] field is not an integer",
	expirationRange:    "Jwt payload [exp] field is not a positive 64 bit integer",
	badNotBefore:       "Jwt payload [nbf] field is not an integer",
	notBeforeRange:     "Jwt payload [nbf] field is not a positive 64 bit integer",
	badAudience:        "Jwt payload [aud] field is not a string or string list",
	badSignatureBase64: "Jwt signature is an invalid Base64url encoded",
	unknownIssuer:      "Jwt issuer is not configured",
	audienceNotAllowed: "Audiences in Jwt are not allowed",
	verificationFailed: "Jwt verification fails",
	multipleTokens:     "Found multiple Jwt tokens",
	noMatchingKey:      "Jwks doesn't have key to match kid or alg from Jwt",
	fetchFailed:        "Jwks remote fetch is failed",
	waiting:            "",
}

// details are what the access log says (%RESPONSE_CODE_DETAILS%).
var details = func() (list [len(texts)]string) {
	for i, t := range texts {
		list[i] = "jwt_authn_access_denied{" + strings.ReplaceAll(t, " ", "_") + "}"
	}
	return list
}()

// bodies are what the client reads.
var bodies = func() (list [len(texts)][]byte) {
	for i, t := range texts {
		list[i] = []byte(t)
	}
	return list
}()
