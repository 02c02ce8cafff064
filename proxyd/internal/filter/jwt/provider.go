package jwt

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/jwk"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/pattern"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	// maxWaiting bounds the streams of a worker that wait for keys of a provider.
	maxWaiting = 1024
	// mostWaits bounds how often a stream waits for a key that a set does not have: a fetch that was under way when it asked may have
	// begun before the key was there.
	mostWaits = 2
	// maxClaim bounds a claim that becomes a header, in bytes.
	maxClaim = 8 << 10
)

// Provider is who makes tokens. Filters that name it share it, with its keys and its verified tokens; it lives on over snapshots in
// which it stays the same.
//
// Workers only read the keys, which the main side publishes: Update those of a file, Take and Fail those that it fetches.
type Provider struct {
	Name string
	// Remote is where keys are fetched; nil: they are in a file or in the configuration.
	Remote *Remote
	// Cells are the workers' own.
	Cells []*counters.JwtProvider

	issuer            []byte // nil: any
	audiences         [][]byte
	subjects          pattern.List
	requireExpiration bool
	maxLifetime, skew int64  // ns
	file              string // "": none
	places            []place
	forward, pad      bool
	payloadID         header.ID
	payloadName       []byte // nil: it is not forwarded
	claims            []claim

	content []byte // of the file; the main side's
	keys    atomic.Pointer[jwk.Set]
	failed  atomic.Bool // the first keys could not be fetched
	workers []perWorker

	// Of keys that are fetched: the time from which on a token whose key is not in the set may have it fetched, on the workers' clock;
	// that one has; that a fetch for one is under way; and that there are no more.
	ring                  func()
	missAfter             atomic.Int64
	missed, fetches, gone atomic.Bool
}

// Remote says how keys are fetched.
type Remote struct {
	Cluster           cluster.Handle
	Host, Path        string
	Timeout, CacheFor time.Duration
	// KeyMismatch is the least time between two fetches for keys that are not in the set; 0: there are none.
	KeyMismatch time.Duration
	configured  *configv1.RemoteJwks
}

// claim is one that becomes a header.
type claim struct {
	id   header.ID
	name []byte
	path [][]byte // of members; the first is the whole name, for claims with a dot in it
}

// perWorker is what one worker changes.
type perWorker struct {
	cache   cache
	token   token
	found   [][]byte
	waiting list
	_       [64]byte // of two workers on no cache line
}

// Needs are what providers are built with.
type Needs struct {
	Workers int
	Cells   []*counters.JwtProvider
	Secrets *tlstransport.Secrets
	// Cluster finds a cluster's handle.
	Cluster func(name string) (cluster.Handle, bool)
	// Ring tells whoever fetches keys that a provider Wants them. Workers call it: it does not block. nil: nobody is told.
	Ring func()
	// Before is the provider of that name in the snapshot before: where keys are fetched from the same place, its serve until
	// newer ones are there. nil: there is none.
	Before *Provider
}

// NewProvider builds one.
func NewProvider(o *configv1.JwtProvider, n *Needs) (*Provider, error) {
	p := &Provider{
		Name: o.GetName(), Cells: n.Cells, requireExpiration: o.GetRequireExpiration(), maxLifetime: o.GetMaxLifetimeMs() * 1e6, skew: o.GetClockSkewMs() * 1e6,
		file: o.GetJwksFile(), forward: o.GetForward(), pad: o.GetPadForwardPayloadHeader(), workers: make([]perWorker, n.Workers),
	}
	var err error
	if p.places, err = compilePlaces(o); err != nil {
		return nil, err
	}
	if p.subjects, err = pattern.Compile(o.GetSubjects()); err != nil {
		return nil, err
	}
	if o.GetIssuer() != "" {
		p.issuer = []byte(o.GetIssuer())
	}
	for _, a := range o.GetAudiences() {
		p.audiences = append(p.audiences, []byte(a))
	}
	if o.GetForwardPayloadHeader() != "" {
		if p.payloadID, p.payloadName, err = ownHeader(o.GetForwardPayloadHeader()); err != nil {
			return nil, err
		}
	}
	for _, c := range o.GetClaimToHeaders() {
		own := claim{path: [][]byte{[]byte(c.GetClaim())}}
		if own.id, own.name, err = ownHeader(c.GetHeader()); err != nil {
			return nil, err
		}
		for part := range strings.SplitSeq(c.GetClaim(), ".") {
			own.path = append(own.path, []byte(part))
		}
		p.claims = append(p.claims, own)
	}
	for i := range p.workers {
		p.workers[i].cache.most = int(o.GetCacheSize())
	}
	return p, p.source(o, n)
}

// ownHeader reads the name of a header that the filter sets.
func ownHeader(text string) (id header.ID, name []byte, err error) {
	name = []byte(strings.ToLower(text))
	if !header.ValidName(name) {
		return 0, nil, fmt.Errorf("%q is not a header name", text)
	}
	return header.Lookup(name), name, nil
}

// source says where the keys are from.
func (p *Provider) source(o *configv1.JwtProvider, n *Needs) error {
	switch r := o.GetRemoteJwks(); {
	case r != nil:
		to, known := n.Cluster(r.GetCluster())
		if !known {
			return fmt.Errorf("cluster %q is not in the snapshot", r.GetCluster())
		}
		p.Remote = &Remote{
			Cluster: to, Host: r.GetHost(), Path: r.GetPath(), configured: r,
			Timeout: time.Duration(r.GetTimeoutMs()) * time.Millisecond, CacheFor: time.Duration(r.GetCacheDurationMs()) * time.Millisecond,
			KeyMismatch: time.Duration(r.GetKidMismatchMs()) * time.Millisecond,
		}
		p.ring = n.Ring
		if p.Remote.Timeout <= 0 || p.Remote.CacheFor <= 0 || p.Remote.KeyMismatch < 0 {
			return fmt.Errorf("remote_jwks: timeout %d ms, cache_duration %d ms and kid_mismatch %d ms make no sense", r.GetTimeoutMs(), r.GetCacheDurationMs(), r.GetKidMismatchMs())
		}
		if b := n.Before; b != nil && b.Remote != nil && proto.Equal(b.Remote.configured, r) {
			p.keys.Store(b.keys.Load())
		}
		return nil
	case p.file != "":
		return p.Update(n.Secrets)
	}
	set, err := jwk.Parse([]byte(o.GetJwks()))
	if err != nil {
		return fmt.Errorf("jwks: %w", err)
	}
	p.keys.Store(set)
	return nil
}

// Update takes a changed file of keys. Main's threads only.
func (p *Provider) Update(secrets *tlstransport.Secrets) error {
	if p.file == "" {
		return nil
	}
	if secrets == nil || secrets.Files[p.file] == nil {
		return fmt.Errorf("the key set %s is not there", p.file)
	}
	if bytes.Equal(secrets.Files[p.file], p.content) {
		return nil // the tokens that were verified stay so
	}
	set, err := jwk.Parse(secrets.Files[p.file])
	if err != nil {
		return fmt.Errorf("%s: %w", p.file, err)
	}
	p.content = secrets.Files[p.file]
	p.keys.Store(set)
	return nil
}

// Wanted tells that somebody does, and no fetch has begun since. Main's threads.
func (p *Provider) Wanted() bool { return p.missed.Load() }

// Begin is called before each fetch: it serves whoever waits until then. wanted is that of Wanted. Main's threads.
func (p *Provider) Begin() (wanted bool) {
	if !p.missed.Load() {
		return false
	}
	p.fetches.Store(true) // before the other, so that a worker sees one of them
	p.missed.Store(false)
	return true
}

// Take publishes keys that were fetched; Fail says that they could not be. Then Settle is called on every worker. Main's threads.
func (p *Provider) Take(set *jwk.Set) {
	p.keys.Store(set)
	p.failed.Store(false)
	p.fetches.Store(false)
}

// Same is Take for a set that did not change: what was verified with it stays so.
func (p *Provider) Same() {
	p.failed.Store(false)
	p.fetches.Store(false)
}

// Fail is that of Take.
func (p *Provider) Fail() {
	p.failed.Store(true)
	p.fetches.Store(false)
}

// Retire is Fail for a provider whose keys nobody fetches any more.
func (p *Provider) Retire() {
	p.gone.Store(true)
	p.missed.Store(false)
	p.Fail()
}

// Ready tells that there are keys.
func (p *Provider) Ready() bool { return p.keys.Load() != nil }

// Settle lets the streams of a worker go on that wait for keys. Its thread.
func (p *Provider) Settle(worker int) {
	waiting := &p.workers[worker].waiting
	for n := waiting.n; n > 0 && waiting.first != nil; n-- {
		c := waiting.first
		waiting.remove(c)
		c.again()
	}
}

// unknownKey judges a token that a set has no key for: its key may be newer than the set, so that the set is fetched anew, with as
// many streams waiting as come until it is here. Tokens are made by anybody, and so are their names of keys: the time between two such
// fetches is the issuer's protection, and what comes in it is refused at once. patient: it may wait.
func (p *Provider) unknownKey(w *worker.Worker, patient bool) status {
	if !patient || p.Remote == nil || p.Remote.KeyMismatch == 0 || p.ring == nil || p.gone.Load() {
		return noMatchingKey
	}
	if p.missed.Load() || p.fetches.Load() {
		return waiting
	}
	after := p.missAfter.Load()
	if w.Now() < after {
		return noMatchingKey
	}
	if !p.missAfter.CompareAndSwap(after, w.Now()+int64(p.Remote.KeyMismatch)) {
		return waiting // another worker asks at this moment
	}
	p.Cells[w.ID][counters.JwtProviderKidMismatch]++
	p.Want()
	return waiting
}

// Want asks for the keys at once. Any thread, of a provider that has a Ring.
func (p *Provider) Want() {
	p.missed.Store(true)
	p.ring()
}

// verify judges a token. What it answers holds whatever happens to the cache. patient is that of judge.
func (p *Provider) verify(w *worker.Worker, raw []byte, audiences [][]byte, patient bool) (*verified, status) {
	mine, cells := &p.workers[w.ID], p.Cells[w.ID]
	keys := p.keys.Load()
	v := mine.cache.find(raw, keys)
	if v != nil {
		cells[counters.JwtProviderCacheHit]++
		if s := p.timely(v.expires, v.notBefore, w.Wall()); s != good {
			if s == expired {
				mine.cache.drop(v)
			}
			return nil, s
		}
		if !allowed(audiences, v.audiences) {
			return nil, audienceNotAllowed
		}
		return v, good
	}
	cells[counters.JwtProviderCacheMiss]++
	t := &mine.token
	if s := t.parse(raw); s != good {
		return nil, s
	}
	if p.issuer != nil && !bytes.Equal(t.issuer, p.issuer) {
		return nil, unknownIssuer
	}
	if s := p.timely(t.expires, t.notBefore, w.Wall()); s != good {
		return nil, s
	}
	v = t.verified(raw, keys)
	switch {
	case !allowed(audiences, v.audiences):
		return nil, audienceNotAllowed
	case len(p.subjects) > 0 && (t.subject == nil || !p.subjects.Match(t.subject)):
		return nil, verificationFailed
	case keys == nil && !p.failed.Load():
		return nil, waiting
	case keys == nil:
		return nil, fetchFailed
	}
	switch keys.Verify(t.algorithm, t.keyID, t.keyID != nil, t.signed, t.signature) {
	case jwk.NoKey:
		return nil, p.unknownKey(w, patient)
	case jwk.Wrong:
		return nil, verificationFailed
	}
	p.forwarded(v, t)
	mine.cache.keep(v)
	return v, good
}

// timely compares the times of a token with the clock.
func (p *Provider) timely(expires, notBefore, wall int64) status {
	if s := valid(expires, notBefore, wall, p.skew); s != good {
		return s
	}
	switch {
	case expires == none && (p.requireExpiration || p.maxLifetime > 0):
		return verificationFailed
	case p.maxLifetime > 0 && expires > (wall+p.maxLifetime)/int64(time.Second):
		return verificationFailed
	}
	return good
}

// allowed tells whether one of a token's audiences is wanted; all are where none is named.
func allowed(want, have [][]byte) bool {
	if len(want) == 0 {
		return true
	}
	for _, h := range have {
		for _, w := range want {
			if bytes.Equal(h, w) {
				return true
			}
		}
	}
	return false
}

// verified copies what outlives the token.
func (t *token) verified(raw []byte, keys *jwk.Set) *verified {
	v := &verified{token: bytes.Clone(raw), keys: keys, expires: t.expires, notBefore: t.notBefore}
	switch aud := t.claims.member(t.claims.root(), claimAudience); {
	case aud == nil:
	case aud.kind == text:
		v.audiences = [][]byte{bytes.Clone(t.claims.text(aud))}
	default:
		for i := aud.first; i != 0; i = t.claims.values[i].next {
			v.audiences = append(v.audiences, bytes.Clone(t.claims.text(&t.claims.values[i])))
		}
	}
	return v
}

// forwarded renders the headers that the upstream gets.
func (p *Provider) forwarded(v *verified, t *token) {
	if p.payloadName != nil {
		v.payload = bytes.Clone(t.payload)
		for p.pad && len(v.payload)%4 != 0 {
			v.payload = append(v.payload, '=')
		}
	}
	for i := range p.claims {
		v.claims = append(v.claims, p.claims[i].render(&t.claims))
	}
}

// render is the value of a header: a string as it is, a number as it is written, an array or object in base64. nil: there is no such
// claim, or it is null, empty, too long, or a string that a header cannot hold as it is: with control characters, or with white
// space around it, which would be cut off and make it that of somebody else.
func (c *claim) render(d *document) []byte {
	v := d.member(d.root(), c.path[0])
	if v == nil {
		v = d.root()
		for _, name := range c.path[1:] {
			if v = d.member(v, name); v == nil {
				return nil
			}
		}
	}
	if v.kind == null {
		return nil
	}
	content := d.text(v)
	if len(content) == 0 || len(content) > maxClaim {
		return nil
	}
	switch v.kind {
	case text:
		if !header.ValidValue(content) || len(header.TrimSpace(content)) != len(content) {
			return nil
		}
	case array, object:
		return base64.StdEncoding.AppendEncode(nil, content)
	}
	return bytes.Clone(content)
}
