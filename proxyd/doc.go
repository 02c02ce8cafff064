/*
NAME

	proxyd - worker event loops and the filter chain of the Retinue suite

SYNOPSIS

	proxyd --dir DIR --generation N
	proxyd --preflight --dir DIR

# DESCRIPTION

proxyd moves bytes: it accepts connections on sockets that restartd owns, runs them through the filter chain of the
snapshot that configd compiled, and keeps pools of connections to upstream hosts. One generation is one run of one binary.
It runs a worker event loop on each CPU that it may use; a connection stays on its worker for life.

It starts from configd's snapshot, or from the last-good one when configd is away, and goes on serving while any of its siblings
is gone.

# SECURITY

proxyd needs no privilege and no capability: sockets come bound. It parses hostile bytes; it never parses configuration,
resolves names, forks, binds a port or serves metrics. It writes to its run directory, its state directory and the shared stats
region, and dials Unix sockets below the run directory and the configured upstream hosts, nothing else.

SIGNALS

	TERM, INT  stop accepting, let connections end for 5 s, cut the rest, exit 0
	QUIT       the same, for the runtime's shutdown_time
	USR1       reopen access logs
	HUP, USR2  nothing: configd reloads, restartd upgrades

FILES

	DIR/proxyd-N.sock          proxy/v1 of generation N
	DIR/state/proxyd/          last-good snapshot, what is known of hosts, fetched key sets
	DIR/spill/                 counters while statsd is away

EXIT STATUS

	0 drained; 1 failed; 2 usage
*/
package main
