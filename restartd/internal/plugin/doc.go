// Package plugin owns plugin processes: it starts them, configures them, keeps them over generations of proxyd and over
// restartd's own restart, replaces them by generation, and ends them.
//
// A generation of a plugin is one process with one configuration. A changed plugin block, a swap and a restart after a crash each
// make a new one, so there is one way in and one way out:
//
//	starting → ready → serving → draining → gone, or failed; canary between ready and serving when a swap wants it
//
// A process has a working directory of its own below the run directory, where its sockets are; it runs a copy of the program, so that a
// package that overwrites the file changes nothing. Sessions make it a session below restartd, Units the service
// retinue-plugin@NAME-G of systemd. Its output goes to a file, or the journal: a pipe of restartd would break with restartd. Its
// first line of output is go-plugin's handshake
//
//	1|1|unix|ADDRESS|grpc
//
// with "frames" instead of "grpc" for a plugin that speaks the control service in frames (filter/v1). We start the process ourselves
// and hand it to go-plugin as one to reattach to, at a start as at an adoption: that way its pipes, its pid handling and
// its two seconds of Kill stay out of it.
//
// The Manager is one loop; what blocks (starting, asking, waiting) runs in goroutines that post to it.
package plugin
