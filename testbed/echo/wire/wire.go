// Package wire holds what the echo server and the test client agree on: the ports, the commands of
// the TCP command port and the deterministic byte stream whose checksum both ends can compute.
package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net"
	"syscall"
)

// Ports of the server.
const (
	// PortEcho answers every byte with itself; end of input is answered with end of output.
	PortEcho = 7000
	// PortCommand reads one line and does what it says; see Command.
	PortCommand = 7001
	// PortSlow accepts a connection only 500 ms after the kernel has completed it.
	PortSlow = 7002
	// PortBanner speaks first: one line, then it behaves as PortEcho.
	PortBanner = 7003
	// PortUDP answers every datagram with itself.
	PortUDP = 7000
	// PortHTTP speaks HTTP/1.1, HTTP/2 without TLS, and WebSocket at /ws.
	PortHTTP = 8080
	// PortGRPC serves tp.test.Echo.
	PortGRPC = 9090
)

// Report is what an end saw of one connection.
type Report struct {
	// Remote and Local are this end's own view of the connection.
	Remote string `json:"remote"`
	Local  string `json:"local"`
	// Tag is what the client called the connection.
	Tag string `json:"tag,omitempty"`
	// Sent and Received count payload bytes.
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
	// Checksum is the SHA-256 of the payload received.
	Checksum string `json:"checksum,omitempty"`
	// End says how the connection ended for this end: "fin", "reset", "timeout", another errno's
	// name, or "" while it lasts.
	End string `json:"end"`
}

// Pattern is an endless deterministic stream.
type Pattern struct {
	state uint64
	rest  []byte
	word  [8]byte
}

// NewPattern begins the stream with that seed.
func NewPattern(seed uint64) *Pattern { return &Pattern{state: seed*2 + 1} }

func (p *Pattern) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		if len(p.rest) == 0 {
			p.state ^= p.state << 13
			p.state ^= p.state >> 7
			p.state ^= p.state << 17
			binary.LittleEndian.PutUint64(p.word[:], p.state)
			p.rest = p.word[:]
		}
		c := copy(b[n:], p.rest)
		p.rest = p.rest[c:]
		n += c
	}
	return n, nil
}

// PatternChecksum is the SHA-256 of the first n bytes of the stream with seed n.
func PatternChecksum(n int64) string {
	h := sha256.New()
	_, _ = io.CopyN(h, NewPattern(uint64(n)), n)
	return Checksum(h)
}

// Checksum prints a hash.
func Checksum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// End names the way a connection ended.
func End(err error) string {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return "fin"
	case errors.As(err, &errno):
		if errno == syscall.ECONNRESET {
			return "reset"
		}
		return ErrnoName(errno)
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	default:
		return err.Error()
	}
}

// ErrnoName is the symbol of the errors that tests care for, and the text of all others.
func ErrnoName(errno syscall.Errno) string {
	names := map[syscall.Errno]string{
		syscall.ECONNREFUSED: "ECONNREFUSED",
		syscall.EHOSTUNREACH: "EHOSTUNREACH",
		syscall.ENETUNREACH:  "ENETUNREACH",
		syscall.ETIMEDOUT:    "ETIMEDOUT",
		syscall.ECONNRESET:   "ECONNRESET",
		syscall.ECONNABORTED: "ECONNABORTED",
		syscall.EPIPE:        "EPIPE",
		syscall.EPERM:        "EPERM",
		syscall.EACCES:       "EACCES",
		syscall.EINVAL:       "EINVAL",
	}
	if name, ok := names[errno]; ok {
		return name
	}
	return errno.Error()
}
