// Package systemd holds the tests of the suite as it is installed: the Debian package, under a real systemd that boots in
// namespaces for it (package sandbox). They run one after the other on one installation.
package systemd
