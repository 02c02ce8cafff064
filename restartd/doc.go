/*
NAME

	restartd - holds listening sockets and the generations of proxyd

DESCRIPTION

	restartd binds every address that the configuration names and keeps the sockets; it starts proxyd, gives it copies of
	them, starts it again on the same sockets when it crashes, and replaces it by a newer binary without a refused or
	dropped connection. It carries no traffic and reads no configuration file: configd tells it addresses, proxyd asks it
	for sockets, and `retinue upgrade` (or USR2) asks it to upgrade.

	Each run of proxyd is a generation with a number that is never used again and a copy of the binary of its own, so
	that overwriting the installed file changes nothing before an upgrade. The table of generations is in a ledger, and
	the sockets are also in the descriptor store of the supervisor (systemd or `retinue run`): restartd may be killed at
	any time and goes on where it was.

SECURITY

	restartd needs CAP_NET_BIND_SERVICE for ports below 1024 and nothing else. It listens on two unix sockets below the
	run directory: restartd.sock answers the suite's own users and root; on restartd.fd.sock a process is given sockets only
	if the kernel says that it is the very process of a generation in the table, whoever its user is. A binary to
	upgrade to runs as restartd's user, so Upgrade is for that user and root. Generations get a cleaned environment.

SIGNALS

	TERM, INT  drain for --stop-time at most, end every generation, close the sockets, leave
	QUIT       the same, waiting for the runtime's shutdown_time
	HUP        nothing: the configuration is configd's
	USR2       upgrade to the installed proxyd

FILES

	DIR/restartd.sock              restart/v1 and suite/v1, gRPC
	DIR/restartd.fd.sock           sockets for generations, SCM_RIGHTS
	STATE/ledger.json              the table of generations
	STATE/generations/N/proxyd     the binary of generation N
	STATE/plugins.json             the table of plugins
	STATE/programs/NAME-G          the program of generation G of a plugin
	DIR/schemas/HASH.schema        what the program with that hash takes as settings, for retinue check
	DIR/plugins/NAME-G/            its working directory, with its sockets
	STATE/last-good                the addresses of the last snapshot, for a start while configd is away

	STATE is DIR/state/restartd, or $STATE_DIRECTORY.

EXIT STATUS

	0 done, 1 failed, 2 wrong usage
*/
package main
