package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"retinue.dev/libs/daemon"
	"retinue.dev/libs/peer"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/compile"
	"retinue.dev/configd/internal/explain"
	"retinue.dev/configd/internal/history"
	"retinue.dev/configd/internal/maintenance"
	"retinue.dev/configd/internal/secret"
	"retinue.dev/configd/internal/snapshot"
	"retinue.dev/configd/internal/syntax"
)

// options are the flags of configd beside those of every daemon.
type options struct {
	config string
	format string
	strict bool
	dump   bool
	asked  string // --explain
	asks   configv1.ExplainRequest
	out    io.Writer
}

// Spec describes configd to libs/daemon.
func Spec(manual string) daemon.Spec {
	o := &options{out: os.Stdout}
	return daemon.Spec{
		Name:    "configd",
		Summary: "compiles the configuration and delivers snapshots",
		Manual:  manual,
		Flags: func(f *flag.FlagSet) {
			f.StringVar(&o.config, "config", "/etc/retinue", "configuration: a file or a directory of files")
			f.StringVar(&o.format, "format", "text", "with -t: text, or unix for one line each")
			f.BoolVar(&o.strict, "strict", false, "with -t: warnings fail too")
			f.BoolVar(&o.dump, "dump", false, "print the compiled snapshot as JSON and exit")
			f.StringVar(&o.asked, "explain", "", "print what the configuration does with a request, \"GET http://host/path\", and exit")
			f.Func("header", "with --explain: \"name: value\", any number of times", func(text string) error {
				name, value, ok := strings.Cut(text, ":")
				if !ok || name == "" {
					return errors.New("a header is written \"name: value\"")
				}
				o.asks.Headers = append(o.asks.Headers, &configv1.Header{Name: strings.TrimSpace(name), Value: strings.TrimSpace(value)})
				return nil
			})
			f.StringVar(&o.asks.From, "from", "", "with --explain: the client's address")
			f.StringVar(&o.asks.Listener, "listener", "", "with --explain: the listener, instead of the URL's port")
		},
		Early: o.early,
		Test:  o.test,
		New:   o.server,
	}
}

func (o *options) compile() *compile.Result {
	return compile.Path(o.config, os.LookupEnv, syntax.ReadFile)
}

// test is -t: diagnostics on the standard output.
func (o *options) test(_ context.Context, env *daemon.Env) error {
	r := compile.Check(o.config, os.LookupEnv, syntax.ReadFile, schemas(env.Dir))
	var text []byte
	switch {
	case env.JSON:
		text = r.Diags.JSON()
	case o.format == "unix":
		text = []byte(r.Diags.Unix())
	case o.format == "text":
		text = []byte(r.Text(false))
		if r.Snapshot != nil {
			text = fmt.Appendf(text, "%s: ok, snapshot %s, %d objects\n", o.config, r.Snapshot.ID, len(r.Snapshot.Objects))
		}
	default:
		return fmt.Errorf("--format %q: use text or unix", o.format)
	}
	if _, err := o.out.Write(text); err != nil {
		return err
	}
	if r.Snapshot == nil || (o.strict && r.Diags.Warnings() > 0) {
		return daemon.ErrReported
	}
	return nil
}

// early is --dump and --explain.
func (o *options) early(_ context.Context, env *daemon.Env) (bool, error) {
	if !o.dump && o.asked == "" {
		return false, nil
	}
	r := o.compile()
	if r.Snapshot == nil {
		fmt.Fprint(os.Stderr, r.Text(false))
		return true, daemon.ErrReported
	}
	if o.asked != "" {
		return true, o.explain(r.Snapshot, env.JSON)
	}
	text, err := dump(r.Snapshot)
	if err != nil {
		return true, err
	}
	_, err = o.out.Write(text)
	return true, err
}

// explain answers --explain.
func (o *options) explain(s *snapshot.Snapshot, asJSON bool) error {
	method, url, ok := strings.Cut(o.asked, " ")
	if !ok {
		return errors.New("--explain wants a method and a URL: \"GET http://host/path\"")
	}
	o.asks.Method, o.asks.Url = method, url
	reply, err := explain.Request(s, nil, &o.asks)
	if err != nil {
		return err
	}
	text := reply.GetRendered()
	if asJSON {
		text = protojson.Format(reply) + "\n"
	}
	_, err = io.WriteString(o.out, text)
	return err
}

type dumped struct {
	Kind   string          `json:"kind"`
	Name   string          `json:"name,omitempty"`
	Hash   string          `json:"hash"`
	Source string          `json:"source,omitempty"`
	Body   json.RawMessage `json:"body"`
}

// dump writes a snapshot as indented JSON, the same bytes for the same snapshot.
func dump(s *snapshot.Snapshot) ([]byte, error) {
	out := struct {
		ID      string   `json:"id"`
		Objects []dumped `json:"objects"`
	}{ID: s.ID}
	for _, o := range s.Objects {
		body, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(snapshot.Body(o))
		if err != nil {
			return nil, fmt.Errorf("%s %q as JSON: %w", o.GetKind(), o.GetName(), err)
		}
		var steady bytes.Buffer // protojson varies its blanks on purpose
		if err := json.Compact(&steady, body); err != nil {
			return nil, err
		}
		d := dumped{Kind: o.GetKind(), Name: o.GetName(), Hash: fmt.Sprintf("%x", o.GetHash()), Body: steady.Bytes()}
		if p, ok := s.Where(o.GetKind(), o.GetName(), ""); ok && p.File != "" {
			d.Source = fmt.Sprintf("%s:%d", p.File, p.Line)
		}
		out.Objects = append(out.Objects, d)
	}
	text, err := json.MarshalIndent(out, "", "  ")
	return append(text, '\n'), err
}

// server is configd at work.
type server struct {
	env *daemon.Env
	svc *service
}

func (o *options) server(_ context.Context, env *daemon.Env) (daemon.Server, error) {
	path, err := filepath.Abs(o.config)
	if err != nil {
		return nil, err
	}
	store, err := history.Open(filepath.Join(env.StateDir, "snapshots"))
	if err != nil {
		return nil, err
	}
	secrets := secret.OpenKeeper(env.StateDir, time.Now())
	if secrets.Lost != nil {
		env.Log.Error("kept secrets are lost: session tickets of clients do not resume", "error", secrets.Lost)
	}
	drained := maintenance.Open(env.StateDir)
	if drained.Lost != nil {
		env.Log.Error("which endpoints are drained is lost: they take requests", "error", drained.Lost)
	}
	svc := newService(path, env.Log, store, secrets, drained, env.Status)
	if err := svc.start(); err != nil {
		fmt.Fprint(os.Stderr, err.Error())
		return nil, daemon.ErrReported
	}
	return &server{env: env, svc: svc}, nil
}

// Run serves until ctx is done.
func (s *server) Run(ctx context.Context) error {
	err := s.env.ServeGRPC(ctx, "configd.sock", func(g *grpc.Server) { configv1.RegisterConfigServer(g, s.svc) }, peer.Same())
	if err != nil {
		return err
	}
	go s.svc.watchSecrets(ctx)
	s.env.Ready(s.svc.describe())
	s.env.FeedWatchdog(ctx, func() bool { s.svc.pub.Current(); return true }) // a deadlock does not return
	<-ctx.Done()
	return nil
}

// Reload is HUP.
func (s *server) Reload(ctx context.Context) error {
	if reply := s.svc.reload(ctx); !reply.GetOk() {
		return errors.New(reply.GetRendered())
	}
	return nil
}
