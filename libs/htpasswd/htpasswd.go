// Package htpasswd reads files of users and their passwords' digests, as `htpasswd -s` writes them: "user:{SHA}digest" a line.
//
// Only SHA-1 is known, as in Envoy. The schemes that are made to be slow (bcrypt, crypt) take some 50 ms of a CPU for each request,
// which a proxy cannot spend before it knows who asks: a stranger with wrong passwords would stop it. So passwords must be
// long and random, since who gets the file can try a billion a second.
package htpasswd

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the file format's
	"crypto/subtle"
	"encoding/base64"
	"fmt"
)

const (
	maxUsers = 100_000
	maxName  = 256
)

// Users are the digests by name. Immutable.
type Users struct {
	digests map[string][sha1.Size]byte
}

// Parse reads a file. An error names the line, never what stands there.
func Parse(content []byte) (*Users, error) {
	u := &Users{digests: map[string][sha1.Size]byte{}}
	for number := 1; len(content) > 0; number++ {
		var line []byte
		line, content, _ = bytes.Cut(content, []byte("\n"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		name, hash, ok := bytes.Cut(line, []byte(":"))
		encoded, sha := bytes.CutPrefix(hash, []byte("{SHA}"))
		var digest [sha1.Size + 1]byte
		switch {
		case !ok || len(name) == 0 || len(name) > maxName:
			return nil, fmt.Errorf("line %d is not \"user:{SHA}digest\"", number)
		case !sha:
			return nil, fmt.Errorf("line %d: the password is not hashed by SHA, which `htpasswd -s` does; slow hashes are not for a proxy", number)
		case len(encoded) != base64.StdEncoding.EncodedLen(sha1.Size):
			return nil, fmt.Errorf("line %d: a digest of SHA has 28 characters", number)
		}
		for _, c := range name {
			if c < ' ' || c == 0x7f {
				return nil, fmt.Errorf("line %d: the user has control characters", number)
			}
		}
		if n, err := base64.StdEncoding.Strict().Decode(digest[:], encoded); err != nil || n != sha1.Size {
			return nil, fmt.Errorf("line %d: the digest is not one of SHA", number)
		}
		if _, twice := u.digests[string(name)]; twice {
			return nil, fmt.Errorf("line %d: the user is there already", number)
		}
		if len(u.digests) == maxUsers {
			return nil, fmt.Errorf("there are more than %d users", maxUsers)
		}
		u.digests[string(name)] = [sha1.Size]byte(digest[:])
	}
	if len(u.digests) == 0 {
		return nil, fmt.Errorf("there is no user in it")
	}
	return u, nil
}

// Check tells whether the password is the user's. How long it takes does not tell whether there is the user.
func (u *Users) Check(user, password []byte) bool {
	want, there := u.digests[string(user)]
	got := sha1.Sum(password) //nolint:gosec // the file format's
	same := subtle.ConstantTimeCompare(got[:], want[:]) == 1
	return same && there
}
