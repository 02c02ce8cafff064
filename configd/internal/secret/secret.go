// Package secret owns what configd delivers beside the snapshots: certificates with their private keys, authorities, revocation
// lists, and the keys of session tickets. None of it is part of a snapshot, of its id or of the history: a certificate is renewed
// without a new snapshot, and no dump shows a key. Nothing here writes content into an error or a log.
package secret

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"retinue.dev/libs/htpasswd"
	"retinue.dev/libs/jwk"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/snapshot"
)

// maxFile bounds one file: a bundle of all public authorities has 200 KiB.
const maxFile = 1 << 20

// ReadFile reads at most limit bytes of a file.
type ReadFile func(path string, limit int) ([]byte, error)

// Problem is why a secret cannot be used. Kind, Name and Field point into the snapshot.
type Problem struct {
	Kind, Name, Field string
	Message           string
}

// Pair reads a certificate and its key and checks that they belong together. field says which file is the matter.
func Pair(read ReadFile, certFile, keyFile string) (chain, key []byte, leaf *x509.Certificate, field string, err error) {
	if chain, err = read(certFile, maxFile); err != nil {
		return nil, nil, nil, "cert_file", err
	}
	if key, err = read(keyFile, maxFile); err != nil {
		return nil, nil, nil, "key_file", err
	}
	if !bytes.Contains(chain, []byte("-----BEGIN CERTIFICATE-----")) {
		return nil, nil, nil, "cert_file", fmt.Errorf("%s holds no PEM certificate", certFile)
	}
	if bytes.Contains(key, []byte("ENCRYPTED")) {
		return nil, nil, nil, "key_file", fmt.Errorf("%s is encrypted: nobody is there to type its password; write it without one, readable for configd alone", keyFile)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		field = "key_file"
		if strings.Contains(err.Error(), "x509:") {
			field = "cert_file"
		}
		return nil, nil, nil, field, fmt.Errorf("%s and %s: %s", certFile, keyFile, strings.TrimPrefix(err.Error(), "tls: "))
	}
	return chain, key, pair.Leaf, "", nil
}

// Authorities reads a file of PEM certificates and answers how many.
func Authorities(read ReadFile, path string) (content []byte, n int, err error) {
	if content, err = read(path, maxFile); err != nil {
		return nil, 0, err
	}
	err = blocks(content, "CERTIFICATE", func(der []byte) error {
		n++
		_, err := x509.ParseCertificate(der)
		return err
	})
	if err == nil && n == 0 {
		err = errors.New("no PEM certificate in it")
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	return content, n, nil
}

// Revocations reads a file of PEM revocation lists, and answers when the first of them should have been replaced.
func Revocations(read ReadFile, path string) (content []byte, next time.Time, err error) {
	if content, err = read(path, maxFile); err != nil {
		return nil, time.Time{}, err
	}
	n := 0
	err = blocks(content, "X509 CRL", func(der []byte) error {
		n++
		list, err := x509.ParseRevocationList(der)
		if err == nil && !list.NextUpdate.IsZero() && (next.IsZero() || list.NextUpdate.Before(next)) {
			next = list.NextUpdate
		}
		return err
	})
	if err == nil && n == 0 {
		err = errors.New("no PEM revocation list (X509 CRL) in it")
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%s: %w", path, err)
	}
	return content, next, nil
}

// KeySet reads the key set of a provider of tokens.
func KeySet(read ReadFile, path string) (content []byte, err error) {
	if content, err = read(path, maxFile); err != nil {
		return nil, err
	}
	set, err := jwk.Parse(content)
	if err == nil && set.Private {
		err = errors.New("some key has its private part, which is for whoever makes tokens; leave it out")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return content, nil
}

// KeySetField names the field of a jwt filter that is the key set of one of its providers.
func KeySetField(provider int) string { return fmt.Sprintf("jwt.providers[%d].jwks_file", provider) }

// Users reads a file of users and their passwords' digests.
func Users(read ReadFile, path string) (content []byte, err error) {
	if content, err = read(path, maxFile); err != nil {
		return nil, err
	}
	if _, err = htpasswd.Parse(content); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return content, nil
}

func blocks(content []byte, kind string, each func(der []byte) error) error {
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return nil
		}
		if block.Type != kind {
			continue
		}
		if err := each(block.Bytes); err != nil {
			return err
		}
	}
}

// Files are the paths of all secrets that a snapshot names, sorted.
func Files(s *snapshot.Snapshot) []string {
	var list []string
	walk(s, func(_ *configv1.Object, c *configv1.Certificate) {
		list = append(list, c.GetCertFile(), c.GetKeyFile())
	},
		func(_ *configv1.Object, _, path string) { list = append(list, path) })
	slices.Sort(list)
	return slices.Compact(list)
}

// walk visits every certificate and every other file of a snapshot.
func walk(s *snapshot.Snapshot, pair func(o *configv1.Object, c *configv1.Certificate), file func(o *configv1.Object, field, path string)) {
	some := func(o *configv1.Object, field, path string) {
		if path != "" {
			file(o, field, path)
		}
	}
	for _, o := range s.Objects {
		if c := o.GetCertificate(); c != nil {
			pair(o, c)
		}
		for _, chain := range o.GetListener().GetFilterChains() {
			some(o, "client_ca", chain.GetTls().GetClientCaFile())
			some(o, "crl_file", chain.GetTls().GetCrlFile())
		}
		for i, p := range o.GetFilter().GetJwt().GetProviders() {
			some(o, KeySetField(i), p.GetJwksFile())
		}
		some(o, "users_file", o.GetFilter().GetBasicAuth().GetUsersFile())
		some(o, "ca_file", o.GetCluster().GetTls().GetCaFile())
		some(o, "crl_file", o.GetCluster().GetTls().GetCrlFile())
	}
}

// Load reads everything that a snapshot names. What cannot be read or used is a problem, and missing from the result.
func Load(s *snapshot.Snapshot, read ReadFile) (*configv1.Secrets, []Problem) {
	out := &configv1.Secrets{}
	var problems []Problem
	known := map[string]bool{}
	walk(s, func(o *configv1.Object, c *configv1.Certificate) {
		chain, key, _, field, err := Pair(read, c.GetCertFile(), c.GetKeyFile())
		if err != nil {
			problems = append(problems, Problem{o.GetKind(), o.GetName(), field, err.Error()})
			return
		}
		out.Certificates = append(out.Certificates, &configv1.CertificateSecret{Name: c.GetName(), ChainPem: chain, KeyPem: key})
	}, func(o *configv1.Object, field, path string) {
		if known[path] {
			return
		}
		known[path] = true
		var content []byte
		var err error
		switch field {
		case "crl_file":
			content, _, err = Revocations(read, path)
		case "users_file":
			content, err = Users(read, path)
		case "client_ca", "ca_file":
			content, _, err = Authorities(read, path)
		default: // KeySetField
			content, err = KeySet(read, path)
		}
		if err != nil {
			problems = append(problems, Problem{o.GetKind(), o.GetName(), field, err.Error()})
			return
		}
		out.Files = append(out.Files, &configv1.FileSecret{Name: path, Content: content})
	})
	slices.SortFunc(out.Certificates, func(a, b *configv1.CertificateSecret) int { return cmp.Compare(a.GetName(), b.GetName()) })
	slices.SortFunc(out.Files, func(a, b *configv1.FileSecret) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, problems
}

// Patch fills in from kept what is missing in s: secrets that were good once serve until better ones come.
func Patch(s, kept *configv1.Secrets) {
	have := map[string]bool{}
	for _, c := range s.GetCertificates() {
		have["certificate "+c.GetName()] = true
	}
	for _, f := range s.GetFiles() {
		have["file "+f.GetName()] = true
	}
	for _, c := range kept.GetCertificates() {
		if !have["certificate "+c.GetName()] {
			s.Certificates = append(s.Certificates, c)
		}
	}
	for _, f := range kept.GetFiles() {
		if !have["file "+f.GetName()] {
			s.Files = append(s.Files, f)
		}
	}
}
