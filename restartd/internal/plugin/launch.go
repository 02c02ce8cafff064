package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/settings"
	configv1 "retinue.dev/services/api/config/v1"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// spec is all that a start needs, so that it can be done outside the loop.
type spec struct {
	name    string
	number  uint64
	object  *configv1.Plugin
	hash    []byte
	command string // path or name
	last    copied // of the plugin's last generation
	schemas settings.Cache
	log     *slog.Logger
}

func (m *Manager) spec(p *plugin, o *configv1.Plugin, hash []byte, command string) spec {
	if command == "" {
		command = o.GetCommand()
	}
	s := spec{name: p.name, number: m.next, object: o, hash: hash, command: command, last: p.last, schemas: settings.InRunDir(m.opt.RunDir), log: m.opt.Log}
	m.next++
	m.dirty = true
	return s
}

func (m *Manager) runDir(name string, number uint64) string {
	return filepath.Join(m.opt.RunDir, "plugins", fmt.Sprintf("%s-%d", name, number))
}

func (m *Manager) stateDir(name string) string {
	return filepath.Join(m.opt.StateDir, "plugins", name)
}

// programPath is a generation's own copy of the program. Below systemd it is all that the unit sees of our state.
func (m *Manager) programPath(name string, number uint64) string {
	return filepath.Join(m.opt.StateDir, "programs", fmt.Sprintf("%s-%d", name, number))
}

// refusal is why a plugin cannot be: with the field of its block where it is one.
type refusal struct{ problems []*filterv1.Problem }

func (r *refusal) Error() string {
	parts := make([]string, len(r.problems))
	for i, p := range r.problems {
		if parts[i] = p.GetMessage(); p.GetField() != "" {
			parts[i] = p.GetField() + ": " + p.GetMessage()
		}
	}
	return strings.Join(parts, "; ")
}

func refused(field, format string, args ...any) *refusal {
	return &refusal{[]*filterv1.Problem{{Field: field, Message: fmt.Sprintf(format, args...)}}}
}

// launch starts a process and brings it to where it can serve. On an error nothing of it is left.
func (m *Manager) launch(s spec, step func(step, message string)) (*instance, error) {
	ctx, cancel := context.WithTimeout(context.Background(), m.opt.Times.Start)
	defer cancel()
	if line := os.Getenv(reattachVariable(s.name)); line != "" {
		return m.attachTo(ctx, s, line, step)
	}
	path, err := findProgram(s.command, m.opt.Programs)
	if err != nil {
		return nil, refused("command", "%v", err)
	}
	dir, state := m.runDir(s.name, s.number), m.stateDir(s.name)
	if n := len(filepath.Join(dir, "plugin0000000000")); n > maxSocketPath {
		return nil, refused("", "the paths of its sockets would have %d bytes, %d are possible: use a shorter run directory or name", n, maxSocketPath)
	}
	t := &task{
		plugin: s.name, number: s.number, program: m.programPath(s.name, s.number), dir: dir,
		log: filepath.Join(state, fmt.Sprintf("%d.log", s.number)),
	}
	for _, d := range []string{dir, state, filepath.Dir(t.program)} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return nil, err
		}
	}
	good := false
	defer func() {
		if !good {
			_ = os.RemoveAll(dir)
			_ = os.Remove(t.program)
		}
	}()
	var own copied
	aside(func() { own, err = copyProgram(path, t.program, s.last) })
	if err != nil {
		return nil, refused("command", "%v", err)
	}
	if want := s.object.GetSha256(); want != "" && !strings.EqualFold(want, own.sum) {
		return nil, refused("sha256", "the program %s has the hash %s", path, own.sum)
	}
	if err := errors.Join(m.opt.Launcher.share(t.program, 0o750), m.opt.Launcher.share(dir, 0o770)); err != nil {
		return nil, err
	}
	step("start", path)
	startOf(t, s.object)
	var p *process
	var output string
	aside(func() { p, output, err = m.opt.Launcher.launch(t) })
	if err != nil {
		return nil, refused("command", "it does not start: %v", err)
	}
	defer func() {
		if !good {
			p.kill()
		}
	}()
	g := &instance{process: p, program: own, record: record{
		Number: s.number, Program: path, SHA256: own.sum, PID: p.PID, StartTime: p.StartTime, ConfigHash: s.hash, ConfigID: 1,
		Dir: dir, Log: output, Unit: p.unit, StartedUnixMS: time.Now().UnixMilli(), State: stateReady,
	}}
	h, err := awaitHandshake(ctx, p, output, dir)
	if err != nil {
		return nil, refused("command", "%v", err)
	}
	g.Control, g.Kind, g.Protocol = h.address, h.kind, h.major
	if g.control, err = contact(ctx, h, p.PID, p.gone); err != nil {
		return nil, refused("command", "%v", err)
	}
	if err := g.configure(ctx, s, step); err != nil {
		g.control.Close()
		return nil, err
	}
	good = true
	if p.settle != nil {
		p.settle()
	}
	return g, nil
}

// configure is the conversation after the handshake.
func (g *instance) configure(ctx context.Context, s spec, step func(step, message string)) error {
	hello, err := g.control.Hello(ctx, &filterv1.HelloRequest{Protocol: uint32(g.Protocol), Name: s.name, Generation: s.number})
	if err != nil {
		return refused("command", "it does not say hello: %v", err)
	}
	if hello.GetProtocol() != uint32(g.Protocol) {
		return refused("command", "it says hello in filter/v%d after a handshake of version %d: a plugin speaks one of them", hello.GetProtocol(), g.Protocol)
	}
	g.ProgramName, g.Version = hello.GetName(), hello.GetVersion()
	step("hello", fmt.Sprintf("%s %s", hello.GetName(), hello.GetVersion()))
	if g.Data = absolute(hello.GetDataAddress(), g.Dir); hello.GetDataAddress() == "" || len(g.Data) > maxSocketPath {
		return refused("command", "its data socket %q cannot be used", hello.GetDataAddress())
	}
	if g.SHA256 != "" { // else somebody else started it
		if err := s.schemas.Store(g.SHA256, hello.GetSchema()); err != nil {
			s.log.Warn("the schema of a plugin is not kept: retinue check does not know it", "plugin", s.name, "error", err)
		}
	}
	if problems := settings.Check(hello.GetSchema(), s.object.GetConfigJson()); len(problems) > 0 {
		return configProblems(problems)
	}
	reply, err := g.control.Configure(ctx, &filterv1.ConfigureRequest{ConfigId: g.ConfigID, ConfigJson: s.object.GetConfigJson()})
	if err != nil {
		return refused("config", "it does not take its configuration: %v", err)
	}
	if problems := reply.GetProblems(); len(problems) > 0 {
		return configProblems(problems)
	}
	if len(reply.GetSubscription().GetPhases()) == 0 {
		return refused("command", "it subscribes to no phase, so it would never be called")
	}
	g.sub = reply.GetSubscription()
	g.Subscription, err = proto.Marshal(g.sub)
	step("configure", "accepted")
	return err
}

func configProblems(list []*filterv1.Problem) *refusal {
	r := &refusal{}
	for _, p := range list {
		field := "config"
		if p.GetField() != "" {
			field += "." + p.GetField()
		}
		r.problems = append(r.problems, &filterv1.Problem{Field: field, Message: p.GetMessage()})
	}
	return r
}

func silent(string, string) {}
