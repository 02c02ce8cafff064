package bank

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// Who gets a new connection. The kernel spreads those of a TCP address over its shards by hash; a small classic BPF program on the
// group chooses instead where some shards shall have none, or a share. It belongs to the sockets, so it outlives restartd.

// Grow gives every TCP address the shards that the running snapshot's workers ask for, and has all of them steered to. It is
// called before a generation starts while none accepts: whoever starts now accepts from all.
func (b *Bank) Grow() {
	b.Widen()
	b.Open()
}

// Widen adds the shards that the running snapshot's workers ask for beside a generation that accepts and does not know them:
// nothing is steered to them until Open.
func (b *Bank) Widen() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.divided {
		return // there are enough
	}
	for _, p := range b.places {
		if err := b.widen(p.group, b.workers); err != nil {
			b.opt.Log.Warn("shards not added, some workers will not accept", "listener", p.listener.Name, "address", p.group.bound.String(), "error", explain(p.group.bound, err))
		}
	}
}

func (b *Bank) widen(g *group, n int) error {
	if g.shared() || len(g.shards) >= n {
		return nil
	}
	if err := attach(g.shards[0].fd, keepTo(len(g.shards))); err != nil {
		return err
	}
	g.steered = true
	return b.grow(g, n)
}

// Open has every shard steered to: the generation that accepts knows them all. It ends a division.
func (b *Bank) Open() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.divided, b.percent = false, 0
	for _, g := range b.all() {
		if !g.steered || g.shared() {
			continue
		}
		if err := detach(g.shards[0].fd); err != nil {
			b.opt.Log.Warn("new shards get no connections", "address", g.bound.String(), "error", err)
			continue
		}
		g.steered = false
	}
}

// Divide gives every TCP address two halves of as many shards as there are workers, so that two generations can accept beside each
// other. Nothing is steered to the shards that it adds until Share. A shared socket cannot be divided. On an error all is as it
// was, but for shards that are there by now.
func (b *Bank) Divide() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.divided {
		return nil
	}
	for _, p := range b.places {
		if err := b.widen(p.group, min(2*b.workers, maxShards)); err != nil {
			return errors.New(explain(p.group.bound, err))
		}
	}
	b.divided, b.percent = true, 0
	return nil
}

// Share steers that many of a hundred new connections to the second halves, at random, and the rest to the first ones. A restartd
// that finds a division calls it before the first snapshot.
func (b *Bank) Share(percent int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.divided, b.percent = true, percent
	for _, g := range b.all() {
		if err := b.share(g); err != nil {
			b.opt.Log.Warn("new connections are not shared as they should be", "address", g.bound.String(), "percent", percent, "error", err)
		}
	}
}

// share attaches the program of the division to a group. One shard alone has no halves.
func (b *Bank) share(g *group) error {
	if g.shared() || len(g.shards) < 2 {
		return nil
	}
	g.steered = true
	return attach(g.shards[0].fd, divide(g.half(), len(g.shards), b.percent))
}

// half is the index at which the second half begins.
func (g *group) half() int { return max(len(g.shards)/2, 1) }

// all is the groups that have sockets, claimed or not.
func (b *Bank) all() (list []*group) {
	for _, groups := range []map[string]*group{b.groups, b.adopted} {
		for _, g := range groups {
			list = append(list, g)
		}
	}
	if b.next != nil {
		list = append(list, b.next.opened...)
	}
	return slices.DeleteFunc(list, func(g *group) bool { return len(g.shards) == 0 })
}

// steer turns new connections away from a group, or lets them come again. A shared socket has no handshake to wait for, and one
// of the supervisor's is not ours to change. Some kernels keep socket filters on TCP from ordinary users: connections then go on to
// begin until the sockets are closed, and the last of them are reset.
func (b *Bank) steer(g *group, how func(fd int) error) {
	if g.bound.shared() || g.activated {
		return
	}
	for _, s := range g.shards {
		if err := how(s.fd); err != nil {
			b.opt.Log.Warn("new connections are not steered", "address", g.bound.String(), "shard", s.number, "error", err)
		}
	}
}

// retire turns new connections away and closes the bank's copies after the grace. Generations accept what is queued meanwhile.
func (b *Bank) retire(g *group) {
	b.steer(g, turnAway)
	g.retire = b.opt.After(b.opt.Grace, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.groups[g.key] != g || g.retire == nil {
			return // claimed again while this waited for the lock
		}
		if b.next != nil && b.next.groups[g.key] == g {
			b.retire(g) // a snapshot under way wants it back: Commit or another grace decides
			return
		}
		delete(b.groups, g.key)
		b.close(g)
	})
}

const random = 0xfffff000 + 56 // SKF_AD_OFF + SKF_AD_RANDOM

// keepTo chooses among the first n sockets of a SO_REUSEPORT group, at random.
func keepTo(n int) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: random},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
}

// divide chooses among the sockets from half to n for percent of a hundred, among those before half for the rest.
func divide(half, n, percent int) []unix.SockFilter {
	if percent <= 0 {
		return keepTo(half)
	}
	limit := uint32(uint64(min(percent, 100)) * (1<<32 - 1) / 100)
	return append([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: random},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: limit, Jt: 4},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: random},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n - half)},
		{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, K: uint32(half)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}, keepTo(half)...)
}

// attach puts a program on the group that fd is of.
func attach(fd int, program []unix.SockFilter) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// detach has the kernel spread by hash over all again. ENOENT: it does.
func detach(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// noSYN is a classic BPF program over a TCP header: it drops what asks for a new connection (SYN without ACK) and keeps the rest,
// so that handshakes under way come to their end.
var noSYN = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},           // the flags
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x12},        // SYN, ACK
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x02, Jf: 1}, // SYN alone
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},                          // dropped
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},                 // kept whole
}

// turnAway makes a listening socket take no new connections. Those whose handshake has begun are still completed and queued:
// closing it would reset them.
func turnAway(fd int) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(noSYN)), Filter: &noSYN[0]})
}

// takeAgain takes turnAway back. ENOENT: nothing was turned away.
func takeAgain(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
