// Package bank owns every listening socket of the suite: it binds, keeps, hands out duplicates of, adopts and closes
// them.
//
// # Why a bank
//
// A listening socket that closes resets the handshakes in its queue, and a port that is bound again by another
// process may be refused to it. So nobody but the bank opens or closes one: a generation of proxyd receives
// duplicates, and its end, orderly or not, leaves the queue where it is.
//
// # Shards
//
// A TCP address has as many sockets as proxyd has workers, bound to the same port with SO_REUSEPORT; the kernel
// spreads connections over them. A shard once opened is closed only with its address: when the number of workers
// falls, one worker accepts from several. When it rises, shards are added with the next generation, and nothing is steered
// to them while one accepts that does not know them (Widen, Open). A canary doubles them once: the old generation accepts from
// the first half, the candidate from the second (Divide, Share).
// A unix address, or one that came by socket activation, is one socket shared by all workers.
//
// # Who holds what, and what a crash leaves behind
//
// Each socket of the bank's own making is put into the supervisor's descriptor store (sdnotify FDSTORE) before it is
// published, and removed when it is closed. A restartd that was killed finds them again among its inherited
// descriptors. The name in the store tells the address and the shard and not the listener, so that renaming a
// listener moves nothing:
//
//	socket/<address, escaped>/<shard>
//	socket/<listener#occurrence=address, escaped>/<shard>    where port 0 was configured
//
// A socket from socket activation bears its listener's name (FileDescriptorName=), stays the supervisor's own, and is
// never unlinked or stored again.
//
// Descriptors are raw integers and never become an os.File: its poller registration and .Fd() flip O_NONBLOCK for
// every copy of a shared socket.
package bank
