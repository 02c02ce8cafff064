package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"

	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// hostile is a plugin that answers no call: once it is asked something it sends one kind of nonsense on that connection, as fast as that is read, for as long as
// it is. Control it speaks properly, in frames, so that it is started and configured.
func hostile(kind string) error {
	_ = os.Remove("hostile.sock")
	l, err := net.Listen("unix", "hostile.sock")
	if err != nil {
		return err
	}
	if err := os.Chmod("hostile.sock", 0o660); err != nil {
		return err
	}
	fmt.Println("1|1|unix|hostile.sock|frames")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			once, piece := nonsense(kind)
			_ = converse(c, once, piece)
		}()
	}
}

// nonsense is a piece of what a kind of plugin sends without an end, and what it sends once before it.
func nonsense(kind string) (once, piece []byte) {
	strange := func(body int) []byte {
		return frame(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Reply{Reply: &filterv1.Reply{Call: 77<<32 | 1, Body: make([]byte, body)}}})
	}
	switch kind {
	case "answers": // to calls that nobody made
		return nil, slices.Repeat(strange(1), 4096)
	case "bodies":
		return nil, strange(1 << 20)
	case "openings":
		return nil, slices.Repeat(frame(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Opening{Opening: &filterv1.Opening{Protocol: 1}}}), 4096)
	case "empty":
		return nil, make([]byte, 64<<10)
	case "endless": // one frame, of 3 GiB
		return []byte{0, 0, 0, 0xc0}, make([]byte, 1<<20)
	}
	piece = make([]byte, 64<<10)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range piece {
		piece[i] = byte(random.Uint32())
	}
	return nil, piece
}

func converse(c net.Conn, once, piece []byte) error {
	opening := &filterv1.Opening{Protocol: 1, MaxFrameBytes: 1 << 20}
	if _, err := c.Write(frame(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Opening{Opening: opening}})); err != nil {
		return err
	}
	for {
		var m filterv1.ToPlugin
		if err := receive(c, &m); err != nil {
			return err
		}
		if r := m.GetControl(); r != nil {
			if _, err := c.Write(frame(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Control{Control: control(r)}})); err != nil {
				return err
			}
			continue
		}
		if m.GetEvent() == nil {
			continue
		}
		if _, err := c.Write(once); err != nil {
			return err
		}
		for {
			if _, err := c.Write(piece); err != nil {
				return err
			}
		}
	}
}

func control(r *filterv1.ControlRequest) *filterv1.ControlReply {
	reply := &filterv1.ControlReply{Id: r.GetId()}
	switch r.GetCall().(type) {
	case *filterv1.ControlRequest_Hello:
		reply.Reply = &filterv1.ControlReply_Hello{Hello: &filterv1.HelloReply{Name: "hostile", Version: "1", Protocol: 1, DataAddress: "hostile.sock"}}
	case *filterv1.ControlRequest_Configure:
		phases := []filterv1.Phase{filterv1.Phase_PHASE_REQUEST_HEADERS}
		reply.Reply = &filterv1.ControlReply_Configure{Configure: &filterv1.ConfigureReply{Subscription: &filterv1.Subscription{Phases: phases}}}
	case *filterv1.ControlRequest_Drain:
		reply.Reply = &filterv1.ControlReply_Drain{Drain: &filterv1.DrainReply{}}
	case *filterv1.ControlRequest_Retire:
		reply.Reply = &filterv1.ControlReply_Retire{Retire: &filterv1.RetireReply{}}
	case *filterv1.ControlRequest_Metrics:
		reply.Reply = &filterv1.ControlReply_Metrics{Metrics: &filterv1.MetricsReply{}}
	}
	return reply
}

func frame(m *filterv1.FromPlugin) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func receive(c net.Conn, m *filterv1.ToPlugin) error {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	b := make([]byte, binary.LittleEndian.Uint32(head[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}
