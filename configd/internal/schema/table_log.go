package schema

func accessLogBlock() *Block {
	return &Block{
		Name: "access_log", Label: "name", Named: true,
		LabelDoc: "Name in references.",
		Doc: "A file with one line a request (or TCP connection). The formats `common`, `combined` and `json` have names; " +
			"any other text holds Envoy's operators: `%START_TIME%`, `%REQ(USER-AGENT)%`, `%RESPONSE_CODE%` … ([list](access-log.md)).",
		Example: `access_log "main" {
  path   = "/var/log/retinue/access.log"
  format = "combined"
}`,
		Attrs: []Attr{
			{Name: "path", Kind: String, Required: true, MaxLen: 1024, Doc: "absolute path, or /dev/stdout or /dev/stderr."},
			{Name: "format", Kind: String, Default: "json", MaxLen: 16 << 10, Doc: "\"common\", \"combined\", \"json\", or a text with operators (a line break is added)."},
			{Name: "json", Kind: HeaderMap, MaxLen: 200, Doc: "own JSON fields instead of format: `{ status = \"%RESPONSE_CODE%\" }`. One lone numeric operator gives a number."},
		},
	}
}
