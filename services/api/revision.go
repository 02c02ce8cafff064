// Package api holds the contracts between the daemons: one directory a contract, generated Go beside each .proto.
//
// Within v1 only additions are made. Every addition that a peer must know of raises Revision; MinRevision is the
// oldest peer that this tree still works with. The history below is the list of reasons.
package api

// Revision is the newest revision of all v1 contracts that this tree understands, MinRevision the oldest peer it
// accepts. They are exchanged in suite/v1 Hello, the first message on every connection.
//
//	1  the backbone: suite, config, stats, restart, proxy
const (
	Revision    = 1
	MinRevision = 1
)
