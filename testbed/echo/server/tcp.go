package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"tp.internal/testbed/echo/wire"
)

const (
	slowAccept = 500 * time.Millisecond
	// bulkPiece is what "give" and "take" move at once: no checksum, few system calls.
	bulkPiece = 128 * 1024
	// ledgerSize bounds the memory of finished connections; the oldest goes first.
	ledgerSize = 4096
)

// ledger remembers how tagged connections ended, so that a test can ask on another connection.
type ledger struct {
	mutex   sync.Mutex
	reports map[string]wire.Report
	order   []string
}

func newLedger() *ledger { return &ledger{reports: map[string]wire.Report{}} }

func (l *ledger) put(report wire.Report) {
	if report.Tag == "" {
		return
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if _, known := l.reports[report.Tag]; !known {
		l.order = append(l.order, report.Tag)
	}
	l.reports[report.Tag] = report
	if len(l.order) > ledgerSize {
		delete(l.reports, l.order[0])
		l.order = l.order[1:]
	}
}

func (l *ledger) get(tag string) (wire.Report, bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	report, ok := l.reports[tag]
	return report, ok
}

type handler func(*net.TCPConn)

func serveTCP(listener net.Listener, delay time.Duration, handle handler) error {
	for {
		time.Sleep(delay)
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go handle(connection.(*net.TCPConn))
	}
}

func report(c *net.TCPConn) wire.Report {
	return wire.Report{Remote: c.RemoteAddr().String(), Local: c.LocalAddr().String()}
}

func echo(ends *ledger) handler {
	return func(c *net.TCPConn) {
		defer c.Close()
		echoBytes(c, c, report(c), ends)
	}
}

func banner(ends *ledger) handler {
	return func(c *net.TCPConn) {
		defer c.Close()
		fmt.Fprintf(c, "220 %s speaks first\n", c.LocalAddr())
		echoBytes(c, c, report(c), ends)
	}
}

// echoBytes answers until the end of input, and ends the output as the input ended.
func echoBytes(c *net.TCPConn, from io.Reader, seen wire.Report, ends *ledger) {
	ends.put(seen)
	sum := sha256.New()
	buffer := make([]byte, 64*1024)
	var err error
	for err == nil {
		var n, written int
		n, err = from.Read(buffer)
		seen.Received += int64(n)
		sum.Write(buffer[:n])
		if n > 0 {
			var failure error
			written, failure = c.Write(buffer[:n])
			seen.Sent += int64(written)
			if failure != nil {
				err = failure
			}
		}
	}
	seen.End = wire.End(err)
	seen.Checksum = wire.Checksum(sum)
	if seen.End == "fin" {
		_ = c.CloseWrite()
	}
	ends.put(seen)
}

// command serves one line and what follows from it:
//
//	echo TAG          echoes; how it ended is kept under TAG
//	sink TAG          reads to the end, answers with the report and ends
//	source N TAG      sends N bytes of the pattern N and ends
//	reset N TAG       sends N bytes of the pattern N and resets
//	reset-now TAG     resets at once
//	drip N TAG        sends N bytes, 64 KiB every 20 ms, then ends
//	give N            sends N bytes, as fast as they are taken, and ends
//	take N            reads N bytes, as fast as they come, answers with the report and ends
//	hold TAG          sends nothing and waits for the other end
//	peer              answers with both addresses and ends
//	report TAG        answers with the report of TAG ({} if there is none)
func command(ends *ledger) handler {
	return func(c *net.TCPConn) {
		defer c.Close()
		from := bufio.NewReader(c)
		line, err := from.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			return
		}
		run(c, from, words[0], words[1:], ends)
	}
}

var takesSize = map[string]bool{
	"source": true, "reset": true, "drip": true, "give": true, "take": true,
}

func run(c *net.TCPConn, from *bufio.Reader, verb string, arguments []string, ends *ledger) {
	seen := report(c)
	size := int64(0)
	if takesSize[verb] && len(arguments) > 0 {
		size, _ = strconv.ParseInt(arguments[0], 10, 64)
		arguments = arguments[1:]
	}
	if len(arguments) > 0 {
		seen.Tag = arguments[0]
	}
	switch verb {
	case "echo":
		echoBytes(c, from, seen, ends)
	case "sink":
		ends.put(seen)
		sum := sha256.New()
		n, err := io.Copy(sum, from)
		seen.Received, seen.Checksum, seen.End = n, wire.Checksum(sum), wire.End(err)
		ends.put(seen)
		answer(c, seen)
	case "source", "reset", "drip":
		send(c, seen, verb, size, ends)
	case "give":
		buffer := make([]byte, bulkPiece)
		for seen.Sent < size {
			n, err := c.Write(buffer[:min(size-seen.Sent, bulkPiece)])
			seen.Sent += int64(n)
			if err != nil {
				return
			}
		}
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	case "take":
		buffer := make([]byte, bulkPiece)
		var err error
		for seen.Received < size && err == nil {
			var n int
			n, err = from.Read(buffer)
			seen.Received += int64(n)
		}
		seen.End = wire.End(err)
		answer(c, seen)
	case "reset-now":
		_ = c.SetLinger(0)
	case "hold":
		ends.put(seen)
		n, err := io.Copy(io.Discard, from)
		seen.Received, seen.End = n, wire.End(err)
		ends.put(seen)
	case "peer":
		answer(c, seen)
	case "report":
		known, ok := ends.get(seen.Tag)
		if !ok {
			fmt.Fprintln(c, "{}")
			return
		}
		answer(c, known)
	default:
		fmt.Fprintf(c, "unknown command %q\n", verb)
	}
}

func send(c *net.TCPConn, seen wire.Report, verb string, size int64, ends *ledger) {
	ends.put(seen)
	pattern := wire.NewPattern(uint64(size))
	var err error
	for seen.Sent < size && err == nil {
		piece := min(size-seen.Sent, 64*1024)
		var n int64
		n, err = io.CopyN(c, pattern, piece)
		seen.Sent += n
		if verb == "drip" {
			time.Sleep(20 * time.Millisecond)
		}
	}
	if verb == "reset" && err == nil {
		// The receiver must have taken the bytes: a reset overtakes what is still queued.
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	} else if err == nil {
		_ = c.CloseWrite()
		_, err = io.Copy(io.Discard, c)
	}
	seen.End = wire.End(err)
	ends.put(seen)
}

func answer(c *net.TCPConn, seen wire.Report) {
	_ = json.NewEncoder(c).Encode(seen)
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c)
}

func serveUDP() error {
	socket, err := net.ListenPacket("udp", fmt.Sprintf(":%d", wire.PortUDP))
	if err != nil {
		return err
	}
	buffer := make([]byte, 64*1024)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if err != nil {
			return err
		}
		_, _ = socket.WriteTo(buffer[:n], from)
	}
}
