// Package hello makes and checks suite/v1 Hello, the first message on every connection between daemons.
package hello

import (
	"os"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/buildinfo"
	"retinue.dev/services/api"
	suitev1 "retinue.dev/services/api/suite/v1"
)

// Mine is what this process says on a connection of the given contract ("config/v1").
func Mine(daemon, contract string) *suitev1.Hello {
	return &suitev1.Hello{
		Daemon: daemon, Contract: contract,
		Revision: api.Revision, MinRevision: api.MinRevision,
		Version: buildinfo.Version, GitRevision: buildinfo.Revision(),
		Pid: int64(os.Getpid()),
	}
}

// Check tells whether two speakers understand each other. The error is a gRPC FailedPrecondition with both numbers and
// what to do.
func Check(mine, theirs *suitev1.Hello) error {
	switch {
	case theirs == nil:
		return status.Errorf(codes.FailedPrecondition, "%s: the peer did not say hello: it is not of this suite, or older than revision %d", mine.GetContract(), mine.GetMinRevision())
	case theirs.GetContract() != mine.GetContract():
		return status.Errorf(codes.FailedPrecondition, "%s speaks %q here, %s expects %q: one of them is connected to the wrong socket", theirs.GetDaemon(), theirs.GetContract(), mine.GetDaemon(), mine.GetContract())
	case theirs.GetRevision() < mine.GetMinRevision():
		return status.Errorf(codes.FailedPrecondition, "%s: %s (%s) knows revision %d, %s (%s) needs at least %d: upgrade %s first", mine.GetContract(),
			theirs.GetDaemon(), theirs.GetVersion(), theirs.GetRevision(), mine.GetDaemon(), mine.GetVersion(), mine.GetMinRevision(), theirs.GetDaemon())
	case mine.GetRevision() < theirs.GetMinRevision():
		return status.Errorf(codes.FailedPrecondition, "%s: %s (%s) needs at least revision %d, %s (%s) knows %d: upgrade %s first", mine.GetContract(),
			theirs.GetDaemon(), theirs.GetVersion(), theirs.GetMinRevision(), mine.GetDaemon(), mine.GetVersion(), mine.GetRevision(), mine.GetDaemon())
	}
	return nil
}
