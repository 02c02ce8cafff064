package diag

// Code is the stable name of a kind of diagnostic. A code is never reused for something else.
type Code string

// Files and syntax.
const (
	Syntax       Code = "E0101"
	FileRead     Code = "E0102"
	FileTooLarge Code = "E0103"
	TooComplex   Code = "E0104"
	NoFiles      Code = "E0105"
)

// Blocks, attributes and their values.
const (
	UnknownName      Code = "E0201"
	MissingAttribute Code = "E0202"
	WrongType        Code = "E0203"
	Later            Code = "E0204"
	OutOfRange       Code = "E0205"
	Repeated         Code = "E0206"
	WrongLabels      Code = "E0207"
	InvalidDuration  Code = "E0208"
	InvalidSize      Code = "E0209"
	Exclusive        Code = "E0210"
)

// Names and expressions.
const (
	UnknownReference  Code = "E0301"
	UnknownVariable   Code = "E0302"
	Cycle             Code = "E0303"
	DuplicateName     Code = "E0304"
	InvalidName       Code = "E0305"
	Evaluation        Code = "E0306"
	EvaluationLimit   Code = "E0307"
	VariableNotSet    Code = "E0308"
	NotAReference     Code = "E0309"
	TooManyObjects    Code = "E0310"
	UnusedCluster     Code = "W0301"
	UnusedAccessLog   Code = "W0302"
	UnusedLocal       Code = "W0303"
	UnusedCertificate Code = "W0304"
	UnusedFilter      Code = "W0305"
	UnusedProvider    Code = "W0306"
)

// Routes, virtual hosts, headers and formats.
const (
	InvalidPattern   Code = "E0401"
	InvalidRegex     Code = "E0402"
	DuplicateDomain  Code = "E0403"
	InvalidDomain    Code = "E0404"
	InvalidHeader    Code = "E0405"
	InvalidValue     Code = "E0406"
	ProtectedHeader  Code = "E0407"
	InvalidStatus    Code = "E0408"
	InvalidTarget    Code = "E0409"
	RouteAction      Code = "E0410"
	InvalidWeight    Code = "E0411"
	InvalidOperator  Code = "E0412"
	ShadowedRoute    Code = "W0401"
	EmptyVirtualHost Code = "W0402"
	NoEffect         Code = "W0403"
)

// Addresses and files.
const (
	InvalidAddress     Code = "E0501"
	DuplicateAddress   Code = "E0502"
	NameNotAddress     Code = "E0503"
	InvalidLogPath     Code = "E0504"
	InvalidCertificate Code = "E0505"
	DuplicateEndpoint  Code = "W0501"
	PortZero           Code = "W0502"
	OpenStats          Code = "W0503"
	SharedLogPath      Code = "W0504"
)

// Applying a snapshot.
const (
	Refused      Code = "E0601"
	NoAnswer     Code = "E0602"
	WentAway     Code = "E0603"
	NotConfirmed Code = "E0604"
	NotSaved     Code = "W0601"
)

// Plugins.
const (
	InvalidPlugin   Code = "E0801"
	InvalidSettings Code = "E0802"
	UnusedPlugin    Code = "W0801"
	UnknownSettings Code = "W0802"
)

// Entry is what docs/reference/diagnostics.md says about a code.
type Entry struct {
	Code  Code
	Title string
	Text  string
}

// Entries lists every code in order; a test holds it complete.
func Entries() []Entry {
	return []Entry{
		{Syntax, "Syntax error", "The file is not HCL (or JSON). A block in one line holds one attribute and no block; `${` and `%{` start a template in a quoted string and are written `$${` and `%%{` when they are meant literally."},
		{FileRead, "File cannot be read", "The path does not exist, is not a regular file, or configd's user may not read it."},
		{FileTooLarge, "Too much configuration", "A file is larger than 16 MiB, all files together larger than 64 MiB, or there are more than 4,096 files."},
		{TooComplex, "Expression too complex", "Brackets are nested deeper than 64, or one expression has more than 1,000 operators. Name the parts in `locals`."},
		{NoFiles, "No configuration", "The directory holds no .hcl, .hcl.json or .json file."},
		{UnknownName, "Unknown attribute or block", "The block has no attribute or block of that name. The nearest known name is shown when there is one; [configuration](configuration.md) lists them all."},
		{MissingAttribute, "Missing attribute or block", "The block needs it and there is no default."},
		{WrongType, "Wrong type", "The value is of another type than the attribute; the message names both."},
		{Later, "Arrives with a later release", "The word belongs to the language but this release cannot honour it, so it is refused and not ignored."},
		{OutOfRange, "Value not allowed", "A number, duration or size outside its bounds, or a word that is not one of the choices."},
		{Repeated, "Block repeated", "The block may appear once in its place. The first one is named."},
		{WrongLabels, "Wrong labels", "A block type has a fixed number of labels: `cluster \"api\" { … }`, `http { … }`."},
		{InvalidDuration, "Invalid duration", "A duration is a string such as \"250ms\", \"5s\", \"1m30s\", \"1h\"."},
		{InvalidSize, "Invalid size", "A size is a number of bytes or a string such as \"64KiB\", \"1MiB\", \"10MB\"."},
		{Exclusive, "Attributes exclude each other", "Of the named attributes and blocks exactly one (or at most one) may be set."},
		{UnknownReference, "Unknown reference", "Nothing of that kind and name is declared in these files."},
		{UnknownVariable, "Unknown variable", "Expressions may use var.NAME, local.NAME and references such as cluster.NAME; this is none of them."},
		{Cycle, "Cyclic locals", "Locals that need each other have no value. The cycle is written out."},
		{DuplicateName, "Name used twice", "Two blocks of a kind, two virtual hosts of one http, or two locals have the same name."},
		{InvalidName, "Invalid name", "A name has 1 to 128 letters, digits, `_`, `-` and `.`, and begins with a letter, a digit or `_`."},
		{Evaluation, "Expression cannot be evaluated", "A function refused its arguments, or an operation does not fit its operands."},
		{EvaluationLimit, "Evaluation too large", "Values and `for` expressions are bounded so that a file cannot make configd use unbounded time or memory."},
		{VariableNotSet, "Variable without a value", "A variable has no default and RETINUE_VAR_<name> is not in configd's environment."},
		{NotAReference, "Not a reference", "Objects are named by traversals, `cluster.api`, not by strings; and by those of the right kind. In the JSON form they are strings: \"cluster.api\"."},
		{TooManyObjects, "Too many objects", "A snapshot holds at most 200,000 listeners, clusters, virtual hosts, routes and endpoints together."},
		{UnusedCluster, "Unused cluster", "No route and no listener names the cluster."},
		{UnusedAccessLog, "Unused access log", "Nothing names the access log; it will not be opened."},
		{UnusedLocal, "Unused local", "Nothing names the local."},
		{UnusedCertificate, "Unused certificate", "No tls block names the certificate."},
		{UnusedFilter, "Unused filter", "No filters list names the filter, so it does nothing."},
		{UnusedProvider, "Unused provider", "No jwt filter names the provider of tokens."},
		{InvalidPattern, "Invalid route pattern", "A pattern is \"[METHOD[,METHOD] ]PATH\": \"/exact\", \"/prefix/*\" or \"~regex\"."},
		{InvalidRegex, "Invalid regular expression", "Regular expressions are RE2, at most 1,024 bytes, and match the whole path."},
		{DuplicateDomain, "Domain used twice", "Two virtual hosts of one http claim the same domain; both places are named."},
		{InvalidDomain, "Invalid domain", "A domain is a lower-case host name or address without a port: \"shop.example.com\", \"*.example.com\", \"example.*\" or \"*\"."},
		{InvalidHeader, "Invalid header name", "A header name is a token of RFC 9110: letters, digits and !#$%&'*+-.^_`|~."},
		{InvalidValue, "Invalid header value", "A header value holds no CR, LF, NUL or other control character, and is at most 8 KiB long."},
		{ProtectedHeader, "Header belongs to the proxy", "Hop-by-hop headers, framing and Host are the connection's own; changing them by hand would let two servers read one message differently. Use rewrite { host = … } for the host."},
		{InvalidStatus, "Invalid status", "respond takes 200 to 599, redirect 301, 302, 303, 307 or 308."},
		{InvalidTarget, "Invalid redirect or rewrite", "The new scheme, host, port or path is malformed, or the redirect changes nothing."},
		{RouteAction, "Route without one action", "A route has exactly one of cluster, split, redirect and respond."},
		{InvalidWeight, "Invalid weight", "Weights are 1 to 1,000,000 and add up to at most 4,294,967,295."},
		{InvalidOperator, "Invalid format operator", "A format holds Envoy's operators, %NAME%, %NAME(ARGUMENT)% or %NAME(ARGUMENT):LENGTH%; a per cent sign is %%."},
		{ShadowedRoute, "Shadowed route", "An earlier route takes every request that this one could match. First match wins, in source order."},
		{EmptyVirtualHost, "Virtual host without routes", "Every request to these domains is answered 404."},
		{NoEffect, "Setting without effect", "Another setting of the same route takes the setting's effect away; the message names it."},
		{InvalidAddress, "Invalid address", "An address is \"127.0.0.1:80\", \"[::]:80\" or \"unix:/path\" (at most 107 bytes)."},
		{DuplicateAddress, "Address used twice", "Two listeners (or a listener and stats) claim the same address; both places are named. 0.0.0.0:80 and 127.0.0.1:80 are different addresses."},
		{NameNotAddress, "Host name where an address is needed", "Names are resolved by discovery, never while a configuration is checked."},
		{InvalidLogPath, "Invalid access-log path", "The path is absolute, or /dev/stdout or /dev/stderr."},
		{InvalidCertificate, "Certificate cannot be used", "A file of a certificate, its key, an authority, a revocation list, users or keys of tokens cannot be read or does not hold what it must, or key and certificate do not belong together. What was in force stays."},
		{DuplicateEndpoint, "Endpoint listed twice", "The endpoint gets twice its share. Use weight when that is meant."},
		{PortZero, "Port 0", "The kernel picks a port, a new one whenever the listener is made."},
		{OpenStats, "Metrics open to the network", "The metrics and the dashboard have no authentication; the address is not a loopback one."},
		{SharedLogPath, "Access logs share a file", "Lines of two formats would be mixed in one file."},
		{Refused, "Refused by a daemon", "A daemon cannot apply the object: an address in use, a log file that cannot be opened. The running snapshot stays."},
		{NoAnswer, "No answer from a daemon", "A daemon did not answer within 10 seconds. The running snapshot stays."},
		{WentAway, "proxyd went away while preparing", "The only proxyd ended while it was building the snapshot. The running snapshot stays; see proxyd's log."},
		{NotConfirmed, "Applied but not confirmed", "Every daemon was ready and the snapshot is in force, but one did not confirm; it gets the snapshot again when it connects."},
		{NotSaved, "Last-good file not written", "The snapshot is in force, but configd could not keep a copy: with broken files and a restart there would be nothing to serve."},
		{InvalidPlugin, "Invalid plugin", "A command is an absolute path or the name of a file in the plugin directory; a hash has 64 hexadecimal digits; a variable is written NAME=value."},
		{InvalidSettings, "Settings that the plugin does not take", "The plugin said what its config { } may hold when its program was started, and this is something else. The plugin itself is asked when the configuration is applied."},
		{UnusedPlugin, "Unused plugin", "No filters list names the plugin. Its process is started all the same."},
		{UnknownSettings, "Settings not checked", "No suite below the run directory (`--dir`) has started this very program, so what its config { } may hold is not known, or it may not be read. The plugin checks it when the configuration is applied."},
	}
}
