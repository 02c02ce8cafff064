// Package peer is gRPC over Unix sockets between processes that the kernel vouches for: every accepted connection is
// checked with SO_PEERCRED, and each call names who may make it.
package peer

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/unixsocket"
)

// maxMessage bounds a gRPC message: a snapshot of 100,000 objects fits.
const maxMessage = 256 << 20

// Cred is who is at the other end of a connection, as the kernel knew it when the connection was made.
type Cred struct {
	UID, GID uint32
	PID      int32
	Groups   []uint32 // supplementary; none when the kernel does not tell them
}

// Listen makes the socket at path with the given mode. A stale one, which nobody answers, is replaced; a live one is an
// error. A path too long for a socket address works by way of its directory.
func Listen(path string, mode os.FileMode) (net.Listener, error) {
	l, err := unixsocket.Listen("unix", path, mode)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Dial returns a client of the daemon at path. It connects when first used and again whenever it must, with short pauses:
// siblings restart.
func Dial(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+path,
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			c, err := unixsocket.Dial(ctx, "unix", path)
			if err != nil {
				return nil, err
			}
			return c, nil
		}),
		grpc.WithTransportCredentials(Credentials()),
		grpc.WithAuthority("retinue"),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
}

// Credentials reads the peer's identity from the socket, on both sides. Nothing is encrypted: the bytes never leave the machine.
func Credentials() credentials.TransportCredentials { return transport{} }

type transport struct{}

type authInfo struct {
	credentials.CommonAuthInfo
	Cred
}

func (authInfo) AuthType() string { return "SO_PEERCRED" }

func (transport) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(c)
}

func (transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(c)
}

func handshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("%T is not a Unix socket: its peer cannot be known", c)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, nil, err
	}
	if failed != nil {
		return nil, nil, fmt.Errorf("SO_PEERCRED: %w", failed)
	}
	info := authInfo{Cred: Cred{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}}
	if err := raw.Control(func(fd uintptr) { info.Groups = groups(int(fd)) }); err != nil {
		return nil, nil, err
	}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return c, info, nil
}

// groups asks for SO_PEERGROUPS (Linux 4.13): as many 32-bit ids as there are.
func groups(fd int) []uint32 {
	for n := 64; n <= 1<<16; n *= 16 { // 65 536 is the kernel's limit of groups
		ids := make([]uint32, n)
		size := uint32(4 * n)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&ids[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 {
			return ids[:size/4]
		}
		if errno != unix.ERANGE {
			return nil
		}
	}
	return nil
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

func (transport) Clone() credentials.TransportCredentials { return transport{} }

// OverrideServerName is part of the interface; there is no server name.
func (transport) OverrideServerName(string) error { return nil }

// FromContext is the caller of an RPC.
func FromContext(ctx context.Context) (Cred, bool) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return Cred{}, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info.Cred, ok
}

// Policy decides whether a peer may call a method ("/retinue.config.v1.Config/Watch").
type Policy func(method string, c Cred) error

// Group is the group of the suite's users, where the suite is installed: who is in it may talk to the daemons.
const Group = "retinue"

// Same accepts root, the process's own user, and the members of the group retinue where there is one.
func Same() Policy {
	own, group, grouped := uint32(os.Getuid()), uint32(0), false
	if g, err := user.LookupGroup(Group); err == nil {
		if id, err := strconv.ParseUint(g.Gid, 10, 32); err == nil {
			group, grouped = uint32(id), true
		}
	}
	return same(own, group, grouped)
}

func same(own, group uint32, grouped bool) Policy {
	return func(method string, c Cred) error {
		if c.UID == 0 || c.UID == own || grouped && (c.GID == group || slices.Contains(c.Groups, group)) {
			return nil
		}
		return status.Errorf(codes.PermissionDenied, "%s: user %d may not: call it as root, as the user of the daemon, or as a member of the group %s", method, c.UID, Group)
	}
}

// ServerOptions make a gRPC server check every call.
func ServerOptions(policy Policy) []grpc.ServerOption {
	check := func(ctx context.Context, method string) error {
		cred, ok := FromContext(ctx)
		if !ok {
			return status.Error(codes.Unauthenticated, "the peer is unknown: connect over the Unix socket")
		}
		return policy(method, cred)
	}
	return []grpc.ServerOption{
		grpc.Creds(Credentials()),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if err := check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return handler(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if err := check(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return handler(srv, stream)
		}),
	}
}
