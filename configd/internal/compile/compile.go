// Package compile owns the way from files to a snapshot: names, defaults, the meaning of every block, the checks that
// cross blocks, and the lints. It is pure: what it may look at besides the files is handed to it.
package compile

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"

	configv1 "retinue.dev/services/api/config/v1"
	filterv1 "retinue.dev/services/api/filter/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/eval"
	"retinue.dev/configd/internal/schema"
	"retinue.dev/configd/internal/snapshot"
	"retinue.dev/configd/internal/syntax"
)

// maxObjects bounds listeners, clusters, virtual hosts, routes and endpoints of one snapshot together.
const maxObjects = 200_000

// Result is what a compilation gives. Snapshot is nil when Diags has errors.
type Result struct {
	Snapshot *snapshot.Snapshot
	Diags    *diag.List
	Sources  map[string][]byte
	files    *syntax.Files
}

// Range gives a place of the snapshot as a range in the files that were compiled, for diagnostics about it.
func (r *Result) Range(p snapshot.Place) hcl.Range {
	for name, src := range r.Sources {
		if r.files.Relative(name) != p.File {
			continue
		}
		at := hcl.Pos{Line: p.Line, Column: p.Column}
		for line := 1; line < p.Line; line++ {
			i := bytes.IndexByte(src[at.Byte:], '\n')
			if i < 0 {
				break
			}
			at.Byte += i + 1
		}
		at.Byte = min(at.Byte+p.Column-1, len(src))
		end := at
		end.Byte, end.Column = min(end.Byte+p.Length, len(src)), end.Column+p.Length
		return hcl.Range{Filename: name, Start: at, End: end}
	}
	return hcl.Range{Filename: p.File, Start: hcl.Pos{Line: p.Line, Column: p.Column}, End: hcl.Pos{Line: p.Line, Column: p.Column}}
}

// Text renders the diagnostics for a terminal.
func (r *Result) Text(colour bool) string { return r.Diags.Text(r.Sources, colour) }

// Path loads and compiles a file or directory. env and readFile are the world outside: configd's environment, and
// syntax.ReadFile.
func Path(path string, env func(string) (string, bool), readFile func(string, int) ([]byte, error)) *Result {
	diags := &diag.List{}
	files := syntax.Load(path, diags)
	return Files(files, diags, eval.Inputs{Dir: files.Dir, Env: env, ReadFile: readFile})
}

// Schemas tells what a plugin's config { } may hold, or why that is not known.
type Schemas func(*configv1.Plugin) (*filterv1.Schema, error)

// Check is Path for somebody who only wants to know: settings of plugins are compared with the schemas that are known. When a
// configuration is applied the plugins themselves are asked.
func Check(path string, env func(string) (string, bool), readFile func(string, int) ([]byte, error), schemas Schemas) *Result {
	diags := &diag.List{}
	files := syntax.Load(path, diags)
	return compile(files, diags, eval.Inputs{Dir: files.Dir, Env: env, ReadFile: readFile}, schemas)
}

// Files compiles parsed files. diags may hold what parsing found; then everything else is still checked.
func Files(files *syntax.Files, diags *diag.List, in eval.Inputs) *Result {
	return compile(files, diags, in, nil)
}

func compile(files *syntax.Files, diags *diag.List, in eval.Inputs, schemas Schemas) *Result {
	c := &compiler{
		files: files, diags: diags, in: in, schemas: schemas,
		out:       snapshot.NewBuilder(),
		used:      map[schema.Ref]bool{},
		addresses: map[string]hcl.Range{},
		logPaths:  map[string]hcl.Range{},
		selectors: map[string][]string{},
		secure:    map[string]bool{},
		http1:     map[string]bool{},
		high:      map[string]bool{},
	}
	r := &Result{Diags: diags, Sources: files.Sources, files: files}
	unreadable := diags.HasErrors()
	c.run(in, unreadable)
	if diags.HasErrors() {
		return r
	}
	s, err := c.out.Build()
	if err != nil {
		diags.Report(diag.Evaluation, hcl.Range{}, "Snapshot cannot be encoded", "%v", err)
		return r
	}
	r.Snapshot = s
	return r
}

type compiler struct {
	files *syntax.Files
	diags *diag.List
	dec   *schema.Decoder
	scope *eval.Scope
	out   *snapshot.Builder
	in    eval.Inputs

	schemas   Schemas // nil: plugins are not looked into
	used      map[schema.Ref]bool
	addresses map[string]hcl.Range
	logPaths  map[string]hcl.Range
	selectors map[string][]string // of clusters: the keys of their subsets, joined
	http1     map[string]bool     // clusters that speak nothing else
	high      map[string]bool     // clusters of routes of high priority
	traces    *schema.Node        // the block that says where spans go; nil: nowhere
	providers map[string]jwtProvider
	secure    map[string]bool // clusters with TLS
	objects   int
}

// run compiles everything. After unreadable files the names that are missing say nothing, so only the rest is checked.
func (c *compiler) run(in eval.Inputs, unreadable bool) {
	var kinds []string
	for _, b := range schema.Root().Blocks {
		if b.Named {
			kinds = append(kinds, b.Name)
		}
	}
	c.scope = eval.New(in, kinds, c.diags)
	for _, body := range c.files.Bodies {
		c.scope.Watch(body)
	}
	c.dec = &schema.Decoder{Sources: c.files.Sources, Eval: c.scope, Diags: c.diags}
	raws := c.dec.Top(c.files.Bodies)
	if unreadable {
		return
	}
	by := map[string][]*schema.Raw{}
	for _, r := range raws {
		switch {
		case r.Block.Named:
			if !c.declare(r.Block.Name, r) {
				continue
			}
		case r.Block.Name == "site":
			host, ok := c.siteHost(r)
			if !ok {
				continue
			}
			r.Label = host
			if !c.declare("cluster", r) {
				continue
			}
			c.used[schema.Ref{Kind: "cluster", Name: host}] = true
		}
		by[r.Block.Name] = append(by[r.Block.Name], r)
	}
	nodes := func(name string) []*schema.Node {
		var out []*schema.Node
		for _, r := range by[name] {
			out = append(out, c.dec.Decode(r))
		}
		return out
	}
	c.scope.Bind(nodes("variable"), nodes("locals"))
	var profile *schema.Profile
	if d := nodes("defaults"); len(d) > 0 {
		c.dec.Defaults = d[0]
		if profile = c.dec.Profile(d[0].Str("profile")); profile != nil {
			d[0].Over(profile.Defaults)
		}
	}

	stats := c.dec.Synthetic("stats", hcl.Range{})
	if n := nodes("stats"); len(n) > 0 {
		stats = n[0]
	}
	runtime := c.dec.Synthetic("runtime", hcl.Range{})
	if n := nodes("runtime"); len(n) > 0 {
		runtime = n[0]
	}
	var overload *schema.Node
	if n := nodes("overload"); len(n) > 0 {
		overload = n[0]
	}
	if profile != nil {
		runtime.Over(profile.Runtime)
		if overload == nil {
			overload = profile.Overload
		}
	}
	clusters, logs, plugins, filters := nodes("cluster"), nodes("access_log"), nodes("plugin"), nodes("filter")
	if n := nodes("tracing"); len(n) > 0 {
		c.traces = n[0]
		c.within(c.traces, func() { c.tracing(c.traces) })
	}
	c.runtime(runtime, overload)
	for _, n := range logs {
		c.within(n, func() { c.accessLog(n) })
	}
	certificates := nodes("certificate")
	for _, n := range certificates {
		c.within(n, func() { c.certificate(n) })
	}
	for _, n := range clusters {
		c.secure[n.Label] = n.Child("tls") != nil
		c.within(n, func() { c.cluster(n) })
	}
	for _, n := range plugins {
		c.within(n, func() { c.plugin(n) })
	}
	providers := nodes("jwt_provider")
	c.jwtProviders(providers)
	for _, n := range filters {
		c.within(n, func() { c.filter(n) })
	}
	for _, n := range nodes("listener") {
		c.within(n, func() { c.listener(n) })
	}
	c.sites(nodes("site"))
	c.within(stats, func() { c.stats(stats) })
	if c.objects > maxObjects {
		c.diags.Report(diag.TooManyObjects, hcl.Range{}, "Too many objects", "The configuration makes %d listeners, clusters, virtual hosts, routes and endpoints; at most %d are served.", c.objects, maxObjects)
	}
	if !c.diags.HasErrors() { // what is unused is not known while something could not be read
		c.unused(clusters, logs, plugins, certificates)
		c.unusedFilters(filters)
		c.unusedProviders(providers)
		c.scope.UnusedLocals()
	}
}

func (c *compiler) declare(kind string, r *schema.Raw) bool {
	first, ok := c.scope.Declare(kind, r.Label, r.LabelRange)
	if !ok {
		c.diags.Report(diag.DuplicateName, r.LabelRange, "Name used twice", "There is already a %s %q on %s.", strings.ReplaceAll(kind, "_", " "), r.Label, schema.Place(first))
	}
	return ok
}

func (c *compiler) unused(clusters, logs, plugins, certificates []*schema.Node) {
	for _, n := range clusters {
		if !c.used[schema.Ref{Kind: "cluster", Name: n.Label}] {
			c.diags.Report(diag.UnusedCluster, n.DefRange, "Unused cluster", "No route and no listener names cluster %q.", n.Label)
			continue
		}
		for _, b := range n.All("circuit_breaker") {
			for _, high := range b.All("high") {
				if !c.high[n.Label] {
					c.diags.Report(diag.NoEffect, high.DefRange, "Nothing to limit", "No route to cluster %q has priority = \"high\", so these limits hold for nothing.", n.Label)
				}
			}
		}
	}
	for _, n := range logs {
		if !c.used[schema.Ref{Kind: "access_log", Name: n.Label}] {
			c.diags.Report(diag.UnusedAccessLog, n.DefRange, "Unused access log", "Nothing names access_log %q; it will not be opened.", n.Label)
		}
	}
	for _, n := range plugins {
		if !c.used[schema.Ref{Kind: "plugin", Name: n.Label}] {
			c.diags.Report(diag.UnusedPlugin, n.DefRange, "Unused plugin", "No filters list names plugin %q; it is started all the same.", n.Label)
		}
	}
	for _, n := range certificates {
		if !c.used[schema.Ref{Kind: "certificate", Name: n.Label}] {
			c.diags.Report(diag.UnusedCertificate, n.DefRange, "Unused certificate", "No tls block names certificate %q.", n.Label)
		}
	}
}

func (c *compiler) within(n *schema.Node, f func()) { c.diags.Within(n.Title(), f) }

func (c *compiler) place(r hcl.Range) snapshot.Place {
	if r.Filename == "" {
		return snapshot.Place{}
	}
	p := snapshot.Place{File: c.files.Relative(r.Filename), Line: r.Start.Line, Column: r.Start.Column}
	if r.End.Line == r.Start.Line {
		p.Length = r.End.Column - r.Start.Column
	}
	return p
}

func (c *compiler) source(r hcl.Range) *configv1.Source {
	p := c.place(r)
	return &configv1.Source{File: p.File, Line: uint32(p.Line), Column: uint32(p.Column)}
}

// ref marks an object as used and returns its name.
func (c *compiler) ref(v schema.Value) string {
	r, ok := v.V.(schema.Ref)
	if !ok {
		return ""
	}
	c.used[r] = true
	return r.Name
}

// refs returns the names of a list of references, each once.
func (c *compiler) refs(list []schema.Value) []string {
	var out []string
	seen := map[string]bool{}
	for _, v := range list {
		if name := c.ref(v); name != "" && !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	return out
}

// inside narrows the range of a string to length bytes from offset, where the file holds the string as it is; with
// escapes or an expression the whole range stays.
func (c *compiler) inside(r hcl.Range, text string, offset, length int) hcl.Range {
	src := c.files.Sources[r.Filename]
	if r.Start.Byte < 0 || r.End.Byte > len(src) || r.Start.Byte > r.End.Byte || text == "" {
		return r
	}
	written := src[r.Start.Byte:r.End.Byte]
	i := bytes.Index(written, []byte(text))
	if i < 0 {
		return r
	}
	begin, end := r.Start, r.Start
	begin = advance(begin, written[:i+offset])
	end = advance(end, written[:i+offset+length])
	return hcl.Range{Filename: r.Filename, Start: begin, End: end}
}

func advance(p hcl.Pos, over []byte) hcl.Pos {
	p.Byte += len(over)
	if n := bytes.Count(over, []byte("\n")); n > 0 {
		p.Line += n
		p.Column = 1
		over = over[bytes.LastIndexByte(over, '\n')+1:]
	}
	p.Column += len(over)
	return p
}

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
