package overload

import (
	"bytes"
	"os"
	"path"
	"runtime/metrics"
	"strconv"

	"golang.org/x/sys/unix"
)

// Pressure is used of limit, of Full; 0 where there is no limit.
func Pressure(used, limit uint64) uint32 {
	if limit == 0 {
		return 0
	}
	return uint32(min(float64(used)/float64(limit), 2) * Full)
}

// Meter measures the process. One goroutine's.
type Meter struct {
	root    string // of the file system: "/"
	samples []metrics.Sample
}

// NewMeter makes a meter.
func NewMeter() *Meter {
	m := &Meter{root: "/"}
	for _, name := range []string{
		"/gc/heap/live:bytes", "/memory/classes/heap/stacks:bytes", "/memory/classes/metadata/mspan/inuse:bytes",
		"/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
	} {
		m.samples = append(m.samples, metrics.Sample{Name: name})
	}
	return m
}

// Memory is what the process needs, in bytes: the heap that its last collection left, stacks, and what is mapped beside the
// heap. Garbage does not count: the heap grows until the runtime's own limit whether or not anything is short.
func (m *Meter) Memory() uint64 {
	metrics.Read(m.samples)
	value := func(i int) uint64 {
		if m.samples[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return m.samples[i].Value.Uint64()
	}
	need := value(0) + value(1) + value(2)
	heap := value(3) - min(value(3), value(4)) // what the runtime has of the system
	if resident := m.resident(); resident > heap {
		need += resident - heap
	}
	return need
}

// resident is the anonymous memory that is in RAM, in bytes: without files that are mapped.
func (m *Meter) resident() uint64 {
	b, err := os.ReadFile(path.Join(m.root, "proc/self/statm"))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b)
	if len(fields) < 3 {
		return 0
	}
	all, err1 := strconv.ParseUint(string(fields[1]), 10, 64)
	shared, err2 := strconv.ParseUint(string(fields[2]), 10, 64)
	if err1 != nil || err2 != nil || shared > all {
		return 0
	}
	return (all - shared) * uint64(os.Getpagesize())
}

// Descriptors is how many are open. Since Linux 6.2 the kernel tells it as a size; before, they are counted.
func (m *Meter) Descriptors() uint64 {
	dir := path.Join(m.root, "proc/self/fd")
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Size > 0 {
		return uint64(st.Size)
	}
	d, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer d.Close()
	n := uint64(0)
	for {
		names, err := d.Readdirnames(4096)
		n += uint64(len(names))
		if err != nil {
			return n
		}
	}
}
