package routing

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
)

// MaxProgram bounds the program that a regular expression becomes: matching takes time by its length times that of the text, on the
// thread that serves all others too. An expression of 1 KiB stays below it unless counted repetitions, x{1000}, unfold.
const MaxProgram = 1200

// Expression compiles an expression (RE2) for a whole text.
func Expression(pattern string) (*regexp.Regexp, error) {
	// Alone first: "a)|(b" would be valid between the anchors.
	if err := CheckExpression(pattern); err != nil {
		return nil, err
	}
	return regexp.Compile(`\A(?:` + pattern + `)\z`)
}

// CheckExpression says what is wrong with an expression.
func CheckExpression(pattern string) error {
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	var broken *syntax.Error
	switch {
	case errors.As(err, &broken):
		return fmt.Errorf("%s: `%s`", broken.Code, broken.Expr)
	case err != nil:
		return err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return err
	}
	if n := len(program.Inst); n > MaxProgram {
		return fmt.Errorf("it unfolds into %d steps, of which each byte of a text could take all; at most %d: write shorter repetitions", n, MaxProgram)
	}
	return nil
}
