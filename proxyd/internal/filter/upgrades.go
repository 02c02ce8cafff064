package filter

import (
	"strings"

	"retinue.dev/proxyd/internal/header"
)

// Upgrades are the protocols that a request may switch to. The zero value allows none.
type Upgrades struct {
	any, connect bool
	names        []string // lower case
}

// NewUpgrades reads names of protocols; "*" is any of them, "connect" the method CONNECT.
func NewUpgrades(types []string) (u Upgrades) {
	for _, name := range types {
		switch name = strings.ToLower(name); name {
		case "*":
			u.any = true
		case "connect":
			u.connect = true
		default:
			u.names = append(u.names, name)
		}
	}
	return u
}

// Connect tells whether the method CONNECT may open a tunnel.
func (u *Upgrades) Connect() bool { return u.connect }

// Protocols tells whether Upgrade may name any protocol.
func (u *Upgrades) Protocols() bool { return u.any || len(u.names) > 0 }

// Allows tells whether the value of an Upgrade field names a protocol that is allowed.
func (u *Upgrades) Allows(value []byte) bool {
	for {
		token, rest, more := header.NextToken(value)
		if !more {
			return false
		}
		if u.any {
			return true
		}
		for _, name := range u.names {
			if header.EqualFold(token, name) {
				return true
			}
		}
		value = rest
	}
}

// permits tells whether a request that asks for a tunnel may have it.
func (u *Upgrades) permits(r *header.Request) bool {
	if protocol := r.Get(header.Upgrade); protocol != nil {
		return u.Allows(protocol)
	}
	return u.connect
}
