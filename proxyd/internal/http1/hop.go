package http1

import "retinue.dev/proxyd/internal/header"

// maxOptions bounds the list of the Connection fields: each nominated name costs a pass over the fields.
const maxOptions = 32

// hopByHop are the fields of one connection, never forwarded (RFC 9110 7.6.1). Codecs write their own. Trailer
// stays: it describes the message, and AppendRequestHead drops it where there can be no trailers.
var hopByHop = header.MaskOf(
	header.Connection, header.KeepAlive, header.ProxyConnection, header.TransferEncoding, header.HTTP2Settings,
	header.ProxyAuthenticate, header.ProxyAuthorization,
)

var hopOrNegotiated = header.MaskOf(
	header.Connection, header.KeepAlive, header.ProxyConnection, header.TransferEncoding, header.HTTP2Settings,
	header.ProxyAuthenticate, header.ProxyAuthorization, header.TE, header.Upgrade,
)

// endToEnd are the fields that a sender may not nominate. A client that could have them removed behind the back of the
// proxy in front of it would forge what that one vouched for, or strip credentials; one who tries is refused, as
// Envoy does for X-Forwarded-*.
var endToEnd = header.MaskOf(
	header.Host, header.ContentLength, header.ContentType, header.ContentEncoding, header.ContentRange,
	header.Authorization, header.Cookie, header.SetCookie, header.WWWAuthenticate, header.CacheControl,
	header.Date, header.Expect, header.Location, header.Vary, header.Via, header.Origin, header.Range,
	header.StrictTransportSecurity, header.ContentSecurityPolicy,
	header.Forwarded, header.XForwardedFor, header.XForwardedProto, header.XForwardedHost, header.XForwardedPort,
	header.XForwardedClientCert, header.XRealIP, header.XRequestID, header.Traceparent, header.Tracestate,
)

// StripHopByHop removes what must not travel on: the connection's own fields, those that Connection nominates, TE but
// for "trailers", and Upgrade unless keepUpgrade. Run it once on each message that comes in, after Parse and before
// anything is added.
func StripHopByHop(b *header.Block, keepUpgrade bool, side Side) *Error {
	if !b.HasAny(&hopOrNegotiated) {
		return nil
	}
	if b.Has(header.Connection) {
		if f := removeNominated(b); f != ok {
			return side.fault(f)
		}
	}
	if b.Has(header.TE) {
		if b.HasToken(header.TE, "trailers") {
			b.SetString(header.TE, "", "trailers")
		} else {
			b.RemoveID(header.TE)
		}
	}
	if !keepUpgrade {
		b.RemoveID(header.Upgrade)
	}
	b.RemoveAny(&hopByHop)
	return nil
}

func removeNominated(b *header.Block) fault {
	options := 0
	// Connection fields are counted, not held by position: removing others moves them. None is removed here, and
	// the list that is read stays valid.
	for nth := range b.Count(header.Connection) {
		i := b.Index(header.Connection, 0)
		for range nth {
			i = b.Index(header.Connection, i+1)
		}
		list := b.ValueAt(i)
		for {
			token, rest, more := header.NextToken(list)
			if !more {
				break
			}
			list = rest
			if options++; options > maxOptions {
				return badConnection
			}
			switch id := header.Lookup(token); {
			case id == header.Connection, id == header.KeepAlive, id == header.TE, id == header.Upgrade,
				id == header.TransferEncoding:
				// Handled by name; Connection itself must stay until its list is read. Some servers do nominate
				// Transfer-Encoding; the framing is decided by then.
			case endToEnd.Has(id):
				return badConnection
			case id == header.Other && !header.ValidName(token):
				return badConnection
			default:
				b.RemoveName(token)
			}
		}
	}
	return ok
}
