// Package basicauth is the filter that asks for a user and a password (Envoy's basic_auth; RFC 7617). Its users are a secret, which may
// change while requests run. It keeps nothing of a stream; one value serves all workers.
package basicauth

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"sync/atomic"

	"retinue.dev/libs/htpasswd"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// maxCredentials bounds what is decoded of an Authorization header, in bytes.
const maxCredentials = 1024

// Filter is the filter of one object: a stream.Factory and the one filter that it makes.
type Filter struct {
	stream.PassThrough
	path      string
	users     atomic.Pointer[htpasswd.Users]
	challenge []byte
	userID    header.ID
	userName  []byte // nil: the upstream does not learn the user
	keep      bool
	cells     []*counters.BasicAuth
}

// New builds the filter.
func New(o *configv1.BasicAuthFilter, secrets *tlstransport.Secrets, cells []*counters.BasicAuth) (*Filter, error) {
	f := &Filter{path: o.GetUsersFile(), keep: o.GetKeepAuthorization(), cells: cells}
	realm := o.GetRealm()
	if realm == "" {
		realm = "restricted"
	}
	f.challenge = []byte(`Basic realm="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(realm) + `", charset="UTF-8"`)
	if !header.ValidValue(f.challenge) {
		return nil, fmt.Errorf("the realm has control characters")
	}
	if name := strings.ToLower(o.GetUserHeader()); name != "" {
		if f.userName, f.userID = []byte(name), header.Lookup([]byte(name)); !header.ValidName(f.userName) {
			return nil, fmt.Errorf("%q is not a header name", name)
		}
	}
	return f, f.Update(secrets)
}

// Update takes new users. Main's threads only.
func (f *Filter) Update(secrets *tlstransport.Secrets) error {
	if secrets == nil || secrets.Files[f.path] == nil {
		return fmt.Errorf("the users file %s is not there", f.path)
	}
	users, err := htpasswd.Parse(secrets.Files[f.path])
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.users.Store(users)
	return nil
}

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(*worker.Worker) stream.Filter { return f }

// DecodeHeaders implements stream.Filter.
func (f *Filter) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	cells := f.cells[s.Worker.ID]
	i := s.Request.Index(header.Authorization, 0)
	if i < 0 {
		f.refuse(s, "no_credential_for_basic_auth")
		return stream.StopIteration
	}
	if s.Request.Index(header.Authorization, i+1) >= 0 { // two of them: nobody knows which one counts upstream
		f.refuse(s, "invalid_format_for_basic_auth")
		return stream.StopIteration
	}
	value := s.Request.ValueAt(i)
	const scheme = "basic "
	if len(value) < len(scheme) || !header.EqualFold(value[:len(scheme)], scheme) {
		f.refuse(s, "invalid_scheme_for_basic_auth")
		return stream.StopIteration
	}
	encoded := header.TrimSpace(value[len(scheme):])
	var room [maxCredentials]byte
	if base64.StdEncoding.DecodedLen(len(encoded)) > len(room) {
		f.refuse(s, "invalid_format_for_basic_auth")
		return stream.StopIteration
	}
	n, err := base64.StdEncoding.Decode(room[:], encoded)
	user, password, ok := bytes.Cut(room[:n], colon)
	if err != nil || !ok {
		f.refuse(s, "invalid_format_for_basic_auth")
		return stream.StopIteration
	}
	if !f.users.Load().Check(user, password) {
		f.refuse(s, "invalid_credential_for_basic_auth")
		return stream.StopIteration
	}
	cells[counters.BasicAuthAllowed]++
	if f.userName != nil {
		s.Request.Set(f.userID, f.userName, user)
	}
	if !f.keep {
		s.Request.RemoveID(header.Authorization)
	}
	return stream.Continue
}

var (
	colon   = []byte(":")
	missing = []byte("User authentication failed. Missing or invalid credentials.")
)

func (f *Filter) refuse(s *stream.Stream, detail string) {
	f.cells[s.Worker.ID][counters.BasicAuthDenied]++
	h := s.NewReply(401)
	h.Set(header.WWWAuthenticate, nil, f.challenge)
	s.SendReply(missing, "text/plain", detail)
}
