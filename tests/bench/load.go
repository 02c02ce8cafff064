package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	roleVariable  = "RETINUE_BENCH_ROLE"
	orderVariable = "RETINUE_BENCH_ORDER"
)

// loadOrder is what a process of load does; it prints a loadReport.
type loadOrder struct {
	Port, Connections int
	Path              string
	Host              string // default "bench"
	Vary              int    // any: "00000" in path or host becomes a number below it, at random for each request
	Close             bool
	For               time.Duration
	Rate              int // requests a second, timed from when they were due; 0: as fast as they are answered
	Requests          int // on each connection, then hold it until standard input ends; 0: For
}

type loadReport struct {
	Requests, Errors int
	Took             time.Duration
	P50, P99, P999   time.Duration // with Rate
}

// play is a child process: the upstream or the load.
func play(role string) error {
	runtime.GOMAXPROCS(1)
	switch role {
	case "upstream":
		return upstream()
	case "load":
		var o loadOrder
		if err := json.Unmarshal([]byte(os.Getenv(orderVariable)), &o); err != nil {
			return err
		}
		report, err := o.run()
		if err != nil {
			return err
		}
		fmt.Println(encode(report))
		if o.Requests > 0 {
			_, _ = io.Copy(io.Discard, os.Stdin)
		}
		return nil
	}
	return fmt.Errorf("unknown role %q", role)
}

func (o *loadOrder) run() (loadReport, error) {
	var requests, failed atomic.Int64
	var mu sync.Mutex
	var first error
	var times []time.Duration
	began := time.Now()
	end := began.Add(o.For)
	var done sync.WaitGroup
	for i := range o.Connections {
		done.Add(1)
		go func() {
			defer done.Done()
			c := &client{order: o}
			var own []time.Duration
			for k := 0; ; k++ {
				due := time.Now()
				if o.Rate > 0 {
					due = began.Add(time.Duration(k*o.Connections+i) * time.Second / time.Duration(o.Rate))
					time.Sleep(time.Until(due))
				}
				if o.Requests > 0 && k >= o.Requests || o.Requests == 0 && due.After(end) {
					break
				}
				if err := c.request(); err != nil {
					failed.Add(1)
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
					if failed.Load() > 1000 {
						return
					}
					continue
				}
				requests.Add(1)
				if o.Rate > 0 {
					own = append(own, time.Since(due))
				}
			}
			if o.Requests == 0 {
				c.close()
			} else {
				kept.Store(c, true)
			}
			mu.Lock()
			times = append(times, own...)
			mu.Unlock()
		}()
		if o.Requests > 0 && i%64 == 63 {
			done.Wait() // not all at once: the queue of the listener is short on some machines
		}
	}
	done.Wait()
	r := loadReport{Requests: int(requests.Load()), Errors: int(failed.Load()), Took: time.Since(began)}
	if r.Requests == 0 {
		return r, errors.Join(errors.New("no request was answered"), first)
	}
	if len(times) > 0 {
		slices.Sort(times)
		at := func(q float64) time.Duration { return times[min(len(times)-1, int(q*float64(len(times))))] }
		r.P50, r.P99, r.P999 = at(0.5), at(0.99), at(0.999)
	}
	return r, nil
}

// kept holds the connections that stay idle.
var kept sync.Map

// client is one connection of the load.
type client struct {
	order *loadOrder
	conn  net.Conn
	in    *bufio.Reader
	ask   []byte
	digit int // where "00000" stands in ask
	draw  *rand.Rand
}

func (c *client) request() error {
	if c.conn == nil {
		conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(c.order.Port))
		if err != nil {
			return err
		}
		c.conn = conn
		if c.in == nil {
			c.in = bufio.NewReaderSize(conn, 64<<10)
			c.ask = fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n", c.order.Path, cmp.Or(c.order.Host, "bench"))
			c.digit, c.draw = bytes.Index(c.ask, []byte("00000")), rand.New(rand.NewPCG(rand.Uint64(), 0))
			if c.order.Close {
				c.ask = append(c.ask, "Connection: close\r\n"...)
			}
			c.ask = append(c.ask, "\r\n"...)
		} else {
			c.in.Reset(conn)
		}
	}
	if c.order.Vary > 0 {
		n := c.draw.IntN(c.order.Vary)
		for i := 4; i >= 0; i-- {
			c.ask[c.digit+i] = byte('0' + n%10)
			n /= 10
		}
	}
	err := c.exchange()
	if err != nil || c.order.Close {
		c.close()
	}
	return err
}

func (c *client) exchange() error {
	if _, err := c.conn.Write(c.ask); err != nil {
		return err
	}
	length := 0
	for line := 0; ; line++ {
		text, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		switch {
		case line == 0 && !bytes.Contains(text, []byte(" 200 ")):
			return fmt.Errorf("answered %q", bytes.TrimSpace(text))
		case len(text) == 2:
			_, err := c.in.Discard(length)
			return err
		case len(text) > 16 && (text[0] == 'C' || text[0] == 'c') && bytes.EqualFold(text[:15], []byte("Content-Length:")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(text[15:]))); err != nil {
				return err
			}
		}
	}
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// upstream answers /1k, /64k and /1m with bodies of that size. It prints its port.
func upstream() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	answers := map[string][]byte{}
	for path, size := range map[string]int{"/1k": 1 << 10, "/64k": 64 << 10, "/1m": 1 << 20} {
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nServer: upstream\r\nContent-Type: application/octet-stream\r\n"+
			"Cache-Control: no-store\r\nX-Request-Id: 0123456789abcdef\r\nContent-Length: %d\r\n\r\n", size)
		answers[path] = append([]byte(head), bytes.Repeat([]byte("x"), size)...)
	}
	go func() { // ends with its parent
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go serve(c, answers)
	}
}

func serve(c net.Conn, answers map[string][]byte) {
	defer c.Close()
	buf := make([]byte, 8<<10)
	have := 0
	for {
		n, err := c.Read(buf[have:])
		if err != nil {
			return
		}
		have += n
		for {
			head := bytes.Index(buf[:have], []byte("\r\n\r\n"))
			if head < 0 {
				break
			}
			answer := answers["/1k"]
			if fields := bytes.Fields(buf[:head]); len(fields) > 1 {
				if a, ok := answers[string(fields[1])]; ok {
					answer = a
				}
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
			have = copy(buf, buf[head+4:have])
		}
	}
}
