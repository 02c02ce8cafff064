// Package conn is one transport connection of one worker, downstream or upstream: read, write, half-close,
// time-outs, watermarks. Everything in it runs on the worker's own thread.
//
// Reading: bytes go into the worker's scratch buffer and are presented to the handler in place; what it does not consume is
// kept in blocks and presented again. An idle connection owns no buffer. Writing: small output is staged and leaves in one
// call at the end of the turn; large output leaves at once. A callback never reads another connection: resuming is queued,
// so the scratch buffer belongs to the callback that runs.
package conn

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
)

// Handler is what sits on a connection: a codec, tcp_proxy, a listener filter. All calls come from the
// connection's worker. A handler may call any method of the connection from within a callback, Close included;
// after OnClose the connection must not be used: its memory serves another one from the next turn on.
type Handler interface {
	// OnConnected tells that a dialled connection is established, or that the transport of an accepted one is (Secure).
	OnConnected(c *Conn)
	// OnData presents all unconsumed bytes, old ones first. data is borrowed: it is valid until OnData returns.
	// The handler returns how many bytes it consumed; the connection keeps the rest and presents it again with
	// the next bytes, or at once on ResumeRead when reading was paused. A handler bounds what it leaves.
	OnData(c *Conn, data []byte) (consumed int)
	// OnEOF tells the peer's FIN, after every byte before it was presented. The write side stays usable.
	OnEOF(c *Conn)
	// OnAboveHigh and OnBelowLow tell that staged output has grown above the high watermark, and has fallen
	// below the low one again. They alternate.
	OnAboveHigh(c *Conn)
	OnBelowLow(c *Conn)
	// OnClose is the last call: the connection failed or was closed by anyone, this handler included.
	OnClose(c *Conn, reason Reason)
}

// Reason says why a connection ended.
type Reason uint8

const (
	LocalClose     Reason = iota // Close or CloseAfterFlush by its owner
	RemoteReset                  // ECONNRESET, EPIPE
	ConnectFailure               // the dial failed (Conn.Errno says why), or the transport's handshake
	ConnectTimeout
	LocalError      // any other error of the socket: Conn.Errno says which
	SecurityFailure // the transport found the peer's bytes forged or broken, after the handshake
)

const (
	// directWrite is the size from which output is sent at once instead of being copied into blocks.
	directWrite = 8 << 10
	// readBudget is how many bytes one connection may read in a turn before others have theirs.
	readBudget = 512 << 10
	// lingerBytes bounds what is read and thrown away from a peer that does not stop sending.
	lingerBytes = 1 << 20
	maxPieces   = 32
)

// Options are the limits of a connection. The zero value has the defaults.
type Options struct {
	HighWatermark  int           // bytes staged for the peer; default 1 MiB
	LowWatermark   int           // default half of the high one
	ConnectTimeout time.Duration // default 5 s; dialled: handshake included
	Transport      Transport     // of a dialled connection; nil: plain
	Preface        []byte        // what a dialled connection sends before everything else, its transport included
}

func (o *Options) connectTimeout() time.Duration {
	if o.ConnectTimeout <= 0 {
		return 5 * time.Second
	}
	return o.ConnectTimeout
}

// Conn is one connection: accepted or dialled, then read and written by its handler until Close. Plain values only,
// so that what it knows can be told to another process: descriptor, unconsumed and unsent bytes, half-close state, counts.
type Conn struct {
	handler Handler
	worker  *worker.Worker
	token   uint64
	id      uint64
	fd      int32
	// Errno is the system's reason after ConnectFailure and LocalError.
	Errno poller.Errno

	in, out   buffer.Chain // unconsumed, unsent
	high, low int
	pauses    int32

	connecting bool
	closed     bool
	edge       bool // the descriptor may hold more bytes
	fin        bool // the peer's FIN is announced: a short read is not the end
	eof        bool // and was read
	owed       bool // in was kept while reading was paused: the task presents it again, before anything else is read
	blocked    bool // the socket takes no more until it says so
	writeDead  bool // writing failed; what the peer sent is still read
	above      bool
	dirty      bool
	shutAfter  bool // FIN when out is empty
	shut       bool // FIN sent
	closeAfter bool // end when out is empty
	lingering  bool

	delayed     int64  // ns to linger
	flushed     uint64 // written, when the last bytes were looked at
	discarded   int
	established int64 // ns of the worker's clock
	read        uint64
	written     uint64
	peer        netip.AddrPort
	local       *netip.AddrPort // told by a PROXY header, or by the kernel when it was asked
	address     *poller.Address // dialled
	race        *race           // to several addresses; nil: to one, or over

	secure *secure  // nil: plain
	splice splicing // what is read goes to another connection
	from   *Conn    // whose splice comes here

	timer timer.Timer // connect time-out, then linger
	task  worker.Task // resumes reading

	next *Conn // free list
}

// Accept makes the connection of an accepted descriptor and reads what is there in this turn.
func Accept(w *worker.Worker, fd int32, peer netip.AddrPort, id uint64, h Handler, o *Options) (*Conn, poller.Errno) {
	c := newConn(w, h, o)
	c.fd, c.peer, c.id = fd, peer, id
	c.established = w.Now()
	token, errno := w.Register(fd, c, false)
	if errno != 0 {
		w.Poller.Close(fd)
		c.closed = true
		w.Bury(c)
		return nil, errno
	}
	c.token = token
	return c, 0
}

// Dial begins to connect. OnConnected or OnClose follow, never before Dial returns.
func Dial(w *worker.Worker, address *poller.Address, id uint64, h Handler, o *Options) *Conn {
	c := newConn(w, h, o)
	c.address, c.id, c.connecting = address, id, true
	fd, errno := w.Poller.Connect(address)
	if errno == 0 {
		c.fd = fd
		c.token, errno = w.Register(fd, c, false)
		if errno != 0 {
			w.Poller.Close(fd)
		}
	}
	if errno != 0 {
		c.fd, c.Errno = -1, errno
		w.Soon(&c.task)
		return c
	}
	c.begin(o)
	return c
}

// begin is what a connection that is being made has from its options.
func (c *Conn) begin(o *Options) {
	if o.Transport != nil {
		c.secure = &secure{transport: o.Transport}
	}
	if len(o.Preface) > 0 {
		c.out.Append(&c.worker.Pool, o.Preface)
		c.stage()
	}
	c.worker.Timers.Set(&c.timer, c.worker.Now()+int64(o.connectTimeout()))
}

// spare is a worker's free lists.
type spare struct {
	first     *Conn
	count     int
	races     *race
	raceCount int
	address   unix.RawSockaddrAny // scratch for a call of the kernel
}

// keptConns bounds the free list: what a burst needed beyond it goes back to the heap.
const keptConns = 1024

// Reclaim implements worker.Spent.
func (c *Conn) Reclaim() bool {
	if c.dirty || c.task.Queued() {
		return false
	}
	list := c.worker.Conns.(*spare)
	if list.count >= keptConns {
		return true
	}
	*c = Conn{next: list.first, closed: true}
	list.first = c
	list.count++
	return true
}

func newConn(w *worker.Worker, h Handler, o *Options) *Conn {
	list, _ := w.Conns.(*spare)
	if list == nil {
		list = &spare{}
		w.Conns = list
	}
	c := list.first
	if c == nil {
		c = &Conn{}
	} else {
		list.first = c.next
		list.count--
	}
	*c = Conn{worker: w, handler: h, high: o.HighWatermark, low: o.LowWatermark}
	if c.high <= 0 {
		c.high = 1 << 20
	}
	if c.low <= 0 || c.low >= c.high {
		c.low = c.high / 2
	}
	c.timer.Callback = c
	c.task.Runner = c
	return c
}

// ID is the number that the connection was given.
func (c *Conn) ID() uint64 { return c.id }

// Worker is the loop that the connection lives on.
func (c *Conn) Worker() *worker.Worker { return c.worker }

// Handler and SetHandler tell and change who is called.
func (c *Conn) Handler() Handler { return c.handler }

// SetHandler changes who is called from the next callback on.
func (c *Conn) SetHandler(h Handler) { c.handler = h }

// Peer is the other end of an accepted connection; invalid for a Unix socket.
func (c *Conn) Peer() netip.AddrPort { return c.peer }

// SetPeer changes who the peer is, and what it connected to, to what a PROXY header says.
func (c *Conn) SetPeer(peer, local netip.AddrPort) { c.peer, c.local = peer, &local }

// Address is where a dialled connection goes; while a race is on, where it begins.
func (c *Conn) Address() *poller.Address { return c.address }

// Established is when the connection was, in nanoseconds of the worker's clock; 0 before.
func (c *Conn) Established() int64 { return c.established }

// BytesRead and BytesWritten count what the socket gave and took.
func (c *Conn) BytesRead() uint64 { return c.read }

// BytesWritten counts what the socket took.
func (c *Conn) BytesWritten() uint64 { return c.written }

// Buffered is the bytes staged for the peer.
func (c *Conn) Buffered() int {
	if c.secure != nil {
		return c.out.Len() + c.secure.plain.Len()
	}
	return c.out.Len()
}

// Closed tells that OnClose was called.
func (c *Conn) Closed() bool { return c.closed }

// EOF tells that the peer has sent its FIN and all before it was presented.
func (c *Conn) EOF() bool { return c.eof }

// LocalAddress is this end: what a PROXY header says that the peer connected to, else the kernel's word, for which it is asked once.
func (c *Conn) LocalAddress() netip.AddrPort {
	if c.local != nil {
		return *c.local
	}
	raw := &c.worker.Conns.(*spare).address
	if c.closed || c.worker.Poller.LocalAddress(c.fd, raw) != 0 {
		return netip.AddrPort{}
	}
	local := poller.IP(raw)
	c.local = &local
	return local
}

// OnEvents implements worker.Source.
func (c *Conn) OnEvents(events uint32) {
	if c.connecting {
		if events&(poller.Writable|poller.Failed|poller.HangUp) != 0 {
			c.finishConnect()
		}
		return
	}
	if events&poller.Writable != 0 && c.blocked {
		c.blocked = false
		if c.out.Len() > 0 {
			c.stage()
		}
		if c.from != nil {
			c.worker.Soon(&c.from.task)
		}
	}
	if events&(poller.HalfShut|poller.HangUp|poller.Failed) != 0 {
		c.fin = true
	}
	if events&(poller.Readable|poller.HalfShut|poller.HangUp|poller.Failed) != 0 {
		c.edge = true
		c.readable()
	}
}

func (c *Conn) finishConnect() {
	if errno := c.worker.Poller.SocketError(c.fd); errno != 0 {
		c.Errno = errno
		c.close(ConnectFailure)
		return
	}
	c.connected()
}

// connected goes on when the socket is.
func (c *Conn) connected() {
	c.connecting = false
	c.established = c.worker.Now()
	c.edge = true // bytes may have come with the handshake
	if c.secure != nil {
		if c.out.Len() > 0 {
			c.stage()
		}
		c.secure.transport.Begin(c)
		c.worker.Soon(&c.task)
		return
	}
	c.worker.Timers.Stop(&c.timer)
	if c.out.Len() > 0 || c.shutAfter || c.closeAfter || c.from != nil {
		c.stage()
	}
	c.handler.OnConnected(c)
	if !c.closed {
		c.worker.Soon(&c.task)
	}
}
