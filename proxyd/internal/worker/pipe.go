package worker

const (
	// maxPipes bounds the pipes of a worker that hold bytes: beyond it bytes are copied. An unprivileged user may have 64
	// pipes of 1 MiB before the kernel gives small ones (pipe-user-pages-soft).
	maxPipes = 64
	// keptPipes is how many empty pipes wait for the next use.
	keptPipes = 4
	// smallPipe is what is not worth splicing through, in bytes.
	smallPipe = 64 << 10
	// pipeRetry is how long a worker that was refused a pipe copies before it asks again, in nanoseconds.
	pipeRetry = int64(1e9)
)

// Pipe carries spliced bytes between two sockets. It belongs to a connection only while it holds bytes.
type Pipe struct {
	Read, Write int32
	Size        int // bytes
	Held        int // bytes in it; whoever splices keeps count
}

// TakePipe gives an empty pipe; nil when there is none to have, and bytes must be copied.
func (w *Worker) TakePipe() *Pipe {
	if n := len(w.pipes); n > 0 {
		p := w.pipes[n-1]
		w.pipes = w.pipes[:n-1]
		w.pipesOut++
		return p
	}
	if w.pipesOut >= maxPipes || w.now < w.pipeAgain {
		return nil
	}
	read, write, size, errno := w.Poller.Pipe()
	if errno == 0 && size < smallPipe {
		w.Poller.Close(read)
		w.Poller.Close(write)
	}
	if errno != 0 || size < smallPipe {
		w.pipeAgain = w.now + pipeRetry
		return nil
	}
	w.pipesOut++
	return &Pipe{Read: read, Write: write, Size: size}
}

// GivePipe takes a pipe back. One that still holds bytes is closed: they must not come out elsewhere.
func (w *Worker) GivePipe(p *Pipe) {
	w.pipesOut--
	if p.Held > 0 || len(w.pipes) >= keptPipes {
		w.closePipe(p)
		return
	}
	w.pipes = append(w.pipes, p)
}

// AdoptPipe takes charge of a pipe that another process filled: it counts like one that TakePipe gave.
func (w *Worker) AdoptPipe(p Pipe) *Pipe {
	w.pipesOut++
	return &p
}

func (w *Worker) closePipe(p *Pipe) {
	w.Poller.Close(p.Read)
	w.Poller.Close(p.Write)
}

func (w *Worker) trimPipes() {
	for _, p := range w.pipes {
		w.closePipe(p)
	}
	clear(w.pipes)
	w.pipes = w.pipes[:0]
}
