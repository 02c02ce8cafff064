// Package generation owns the table of proxyd's generations: it starts them, brings each to the state it shall be in,
// upgrades from one to the next, and restarts what crashes.
//
// # The table
//
// A generation is one run of one binary. Its states are restart/v1's:
//
//	starting   the process was started, nothing heard yet
//	warming    attached, building its first snapshot
//	ready      could serve: about to be told Serve, or the old one in probation, which can take over again
//	serving    accepts
//	draining   accepts no more and finishes what it has; also everybody while restartd stops
//	gone       ended after it had served or drained
//	failed     ended before it served, or crashed
//
// At most one generation is the incumbent: it serves, or shall. An upgrade has a candidate beside it until the commit
// makes the candidate the incumbent.
//
// # One goroutine
//
// Machine.Run is the only goroutine that touches the table. All others (RPC handlers, process watchers, slow work such
// as copying a binary) post closures to its inbox. Deadlines are alarms of the loop, on a clock that tests set.
//
// Steering is by level, not by edge: steer compares what a generation says it does with the state it shall be in, and
// sends the command that is missing. So a stream that broke, a report that was lost and a restartd that was killed all
// mend in the same way, when the generation attaches again.
//
// # The ledger
//
// The table is written to <state>/ledger.json before any command leaves and after every change: whole, synced, renamed.
// A restartd that was killed reads it, takes charge of the survivors by pidfd (the start time guards against a pid that
// was given away), and goes on where it was: a candidate that was not yet committed is killed, a canary, a commit or
// a probation under way continues. A process that runs one of our copies and is in no readable ledger was started in the instant of
// the kill and is ended; when the ledger itself is unreadable, such processes are the survivors, the highest number
// the incumbent.
//
// # An upgrade
//
//	preflight  copy the binary, run the copy with --preflight, compare contracts     nothing else has changed
//	start      start the copy as a new generation
//	warm       it attached; builds its snapshot, receives sockets
//	ready      it could serve
//	canary     if asked for: both accept, the candidate from its share (canary.go)
//	commit     it is told Serve; when it says that it accepts, the old one is told StopAccepting
//	probation  the old one keeps what it has; if the new one ends, the old one serves again
//	drain      the old one is told Drain, with the runtime's shutdown_time
//	end        it left, empty or cut
//
// A failure before the commit is complete kills the candidate and changes nothing else. One upgrade at a time; who asked
// for it may hang up.
package generation
