package syntax

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"retinue.dev/configd/internal/diag"
)

// The parsers and evaluators of HCL recurse over brackets and operators, and a goroutine that runs out of stack takes
// the process with it. So depth is bounded on the tokens, before anything recurses.
const (
	maxDepth     = 64
	maxOperators = 1000
)

// checkNative reports the first place where s goes too deep.
func checkNative(s Source, diags *diag.List) bool {
	if plainlyShallow(s.Data) {
		return true
	}
	tokens, _ := hclsyntax.LexConfig(s.Data, s.Name, hcl.InitialPos) // its findings are the parser's to report
	return checkTokens(tokens, diags)
}

// plainlyShallow looks at the bytes of a file without templates, heredocs and block comments, whose lexical grammar is
// trivial, and tells whether it is far from all bounds. Lexing a large file twice would cost a third of a compilation.
func plainlyShallow(src []byte) bool {
	const maxRun = 500 // operators between two commas or line ends
	var open [maxDepth]byte
	depth, run := 0, 0
	for i := 0; i < len(src); i++ {
		switch b := src[i]; {
		case b == '"':
			for i++; i < len(src) && src[i] != '"'; i++ {
				switch src[i] {
				case '\\':
					i++
				case '\n':
					return false
				case '$', '%':
					if i+1 < len(src) && src[i+1] == '{' {
						return false
					}
				}
			}
		case b == '#' || (b == '/' && i+1 < len(src) && src[i+1] == '/'):
			for i < len(src) && src[i] != '\n' {
				i++
			}
			i-- // the line end counts
		case b == '{' || b == '[' || b == '(':
			if depth == maxDepth-1 {
				return false
			}
			open[depth] = b
			depth++
			if b == '[' {
				if run++; run > maxRun {
					return false
				}
			}
		case b == '}' || b == ']' || b == ')':
			if depth > 0 {
				depth--
			}
		case b == ',':
			run = 0
		case b == '\n':
			if depth == 0 || open[depth-1] == '{' {
				run = 0
			}
		case b >= '0' && b <= '9':
			// A long number or one with an exponent is for the lexer to judge.
			start := i
			for i+1 < len(src) && (src[i+1] == '.' || (src[i+1] >= '0' && src[i+1] <= '9')) {
				i++
			}
			if i-start > 32 || (i+1 < len(src) && (src[i+1] == 'e' || src[i+1] == 'E')) {
				return false
			}
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b == '_', b == ' ', b == '\t', b == '\r', b == '.', b == '=', b == ':':
		case b >= 0x80 || b == '<' || b == '/':
			return false
		default:
			if run++; run > maxRun {
				return false
			}
		}
	}
	return true
}

func checkTokens(tokens hclsyntax.Tokens, diags *diag.List) bool {
	type frame struct {
		open      hclsyntax.TokenType
		operators int
	}
	frames := make([]frame, 1, maxDepth+2)
	frames[0].open = hclsyntax.TokenOBrace // the file's own body
	for i := range tokens {
		top := &frames[len(frames)-1]
		switch t := tokens[i].Type; t {
		case hclsyntax.TokenOBrack, hclsyntax.TokenOBrace, hclsyntax.TokenOParen, hclsyntax.TokenTemplateInterp,
			hclsyntax.TokenTemplateControl, hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc:
			// An index nests its collection, a control sequence what follows it.
			if t == hclsyntax.TokenOBrack || t == hclsyntax.TokenTemplateControl {
				top.operators++
			}
			if len(frames) > maxDepth {
				diags.Report(diag.TooComplex, tokens[i].Range, "Nested too deep", "Brackets, blocks and templates may be nested %d deep. Name the inner parts in locals.", maxDepth)
				return false
			}
			frames = append(frames, frame{open: t})
			top = &frames[len(frames)-2]
		case hclsyntax.TokenCBrack, hclsyntax.TokenCBrace, hclsyntax.TokenCParen, hclsyntax.TokenTemplateSeqEnd,
			hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc:
			if len(frames) > 1 {
				frames = frames[:len(frames)-1]
			}
		case hclsyntax.TokenComma:
			top.operators = 0
		case hclsyntax.TokenNewline:
			// Between parentheses and brackets a line break ends nothing.
			if top.open == hclsyntax.TokenOBrace {
				top.operators = 0
			}
		case hclsyntax.TokenNumberLit:
			// Written out in full, 1e999999999 is a gigabyte.
			if exponent := bytes.IndexAny(tokens[i].Bytes, "eE"); len(tokens[i].Bytes) > 64 || (exponent >= 0 && len(tokens[i].Bytes)-exponent > 4) {
				diags.Report(diag.OutOfRange, tokens[i].Range, "Number out of range", "No setting takes a number of this size.")
				return false
			}
		case hclsyntax.TokenIdent, hclsyntax.TokenQuotedLit, hclsyntax.TokenStringLit,
			hclsyntax.TokenComment, hclsyntax.TokenEOF, hclsyntax.TokenEqual, hclsyntax.TokenDot, hclsyntax.TokenColon:
		default: // an operator of any kind
			top.operators++
		}
		if top.operators > maxOperators {
			diags.Report(diag.TooComplex, tokens[i].Range, "Expression too complex", "One expression may hold %d operators. Name its parts in locals.", maxOperators)
			return false
		}
	}
	return true
}

// checkJSON bounds the nesting of objects and arrays and of the templates inside strings, and refuses `for`, splat and
// arithmetic there: they could not be bounded while they run, and what writes JSON can do both itself.
func checkJSON(s Source, diags *diag.List) bool {
	depth := 0
	pos := hcl.InitialPos
	at := func(i int) hcl.Range {
		p := pos
		p.Byte = i
		return hcl.Range{Filename: s.Name, Start: p, End: p}
	}
	lineStart := 0
	for i := 0; i < len(s.Data); i++ {
		switch s.Data[i] {
		case '\n':
			pos.Line++
			lineStart = i + 1
		case '{', '[':
			pos.Column = i - lineStart + 1
			if depth++; depth > maxDepth {
				diags.Report(diag.TooComplex, at(i), "Nested too deep", "Objects and arrays may be nested %d deep.", maxDepth)
				return false
			}
		case '}', ']':
			depth--
		case '"':
			pos.Column = i - lineStart + 1
			end := i + 1
			for end < len(s.Data) && s.Data[end] != '"' {
				if s.Data[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(s.Data) {
				return true // the parser says it better
			}
			if !checkTemplate(s.Data[i:end+1], at(i), diags) {
				return false
			}
			i = end
		}
	}
	return true
}

func checkTemplate(quoted []byte, at hcl.Range, diags *diag.List) bool {
	text := string(quoted)
	if !strings.Contains(text, "{") {
		return true
	}
	var plain string
	if json.Unmarshal(quoted, &plain) != nil || (!strings.Contains(plain, "${") && !strings.Contains(plain, "%{")) {
		return true
	}
	tokens, _ := hclsyntax.LexTemplate([]byte(plain), at.Filename, at.Start)
	if !checkTokens(tokens, diags) {
		return false
	}
	expr, found := hclsyntax.ParseTemplate([]byte(plain), at.Filename, at.Start)
	if found.HasErrors() {
		return true // reported where the string is evaluated
	}
	if Computes(expr) {
		diags.Report(diag.TooComplex, at, "Computation in a JSON string", "Expressions in the JSON form have no for, no [*] and no arithmetic: write the values out, or use a .hcl file.")
		return false
	}
	return true
}

// Computes tells whether an expression or body holds what evaluation must be watched for: loops, splats, arithmetic.
func Computes(n hclsyntax.Node) bool {
	w := &computation{}
	_ = hclsyntax.Walk(n, w)
	return w.found
}

type computation struct{ found bool }

func (w *computation) Enter(n hclsyntax.Node) hcl.Diagnostics {
	switch n.(type) {
	case *hclsyntax.ForExpr, *hclsyntax.SplatExpr, *hclsyntax.BinaryOpExpr, *hclsyntax.UnaryOpExpr:
		w.found = true
	}
	return nil
}

func (w *computation) Exit(hclsyntax.Node) hcl.Diagnostics { return nil }
