/*
NAME

	configd - compiles Retinue's configuration and delivers it to the other daemons

# DESCRIPTION

configd reads the configuration, a file or a directory of files in HCL or its JSON form, checks it, and compiles it
into a snapshot: objects with their hashes under one id. The same files give the same id. The other daemons watch
configd and receive the objects of their role. A snapshot is applied by all of them or by none: restartd binds new
addresses and proxyd builds before anything changes, and what one of them refuses is told with the file and line
where it was written, and leaves the running snapshot as it is.

The configuration is read at start and on reload (HUP, or retinue reload), never by itself. When the files are broken
at start, configd serves the last snapshot that was in force and says so loudly; when there is none it ends with the
diagnostics. While configd is away the other daemons go on with what they have.

# SECURITY

configd reads the configuration and the files that it names with the rights of its user. It opens no network connection but to
the name servers that discovery "dns" asks. It listens on one Unix socket, checks the user of every peer, and serves root, its own user and the
users of the suite. Diagnostics show lines of files, so checking a file of the caller's choice over the socket is for
root and configd's own user. Input is bounded: size and number of files, nesting, work of expressions, number of
objects. Kept snapshots are readable by configd's user only.

SIGNALS

	TERM, INT, QUIT  end
	HUP              reload; a file that is broken changes nothing

FILES

	DIR/configd.sock                       config/v1 for the daemons and for retinue
	DIR/state/configd/snapshots/           the last 20 snapshots; the newest is the last-good one
	/etc/retinue                           the configuration, unless --config says otherwise

With STATE_DIRECTORY set, snapshots are kept below it. RETINUE_VAR_<name> in the environment sets a variable of the
configuration.

EXIT STATUS

	0  done; with -t: the configuration is good
	1  failed; with -t: the configuration is broken, or has warnings and --strict was given
	2  usage
*/
package main
