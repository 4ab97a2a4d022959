package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"tp.internal/testbed/echo/wire"
)

type conversation struct {
	wire.Report
	// Error says why there was no connection, by errno where there is one.
	Error string `json:"error"`
	// SendError says how sending ended, if not well.
	SendError string `json:"send_error"`
	// Matches says whether the bytes received are the pattern of their number (or of -expect).
	Matches bool `json:"matches"`
	// Text is what was received, if that is short.
	Text string `json:"text"`
}

type talker struct {
	send      int64
	seed      int64
	rate      int64
	expect    int64
	mark      int64
	halfClose bool
	poke      bool
	abort     bool
	hold      time.Duration
	moved     atomic.Int64
	marked    atomic.Bool
}

// talk connects, sends the command line if there is one, then N bytes of the pattern N, and reads
// until the end.
func talk(flags *flag.FlagSet, given []string) any {
	var t talker
	flags.Int64Var(&t.send, "send", 0, "send this many bytes of the pattern")
	flags.Int64Var(&t.rate, "rate", 0, "send at most this many bytes a second")
	flags.Int64Var(&t.expect, "expect", -1, "stop reading after this many bytes")
	flags.Int64Var(&t.seed, "seed", 0, "compare what comes with the pattern of this number")
	flags.Int64Var(&t.mark, "mark", 0, "say \"mark\" on standard error after this many bytes")
	flags.BoolVar(&t.halfClose, "half-close", false, "end the output when all is sent")
	flags.BoolVar(&t.poke, "poke", false, "send one byte after -expect bytes and go on reading")
	flags.BoolVar(&t.abort, "abort", false, "end with a reset")
	flags.DurationVar(&t.hold, "hold", 0, "keep the connection this long at the end")
	timeout := flags.Duration("timeout", 60*time.Second, "for the conversation")
	words := arguments(flags, given, 1)

	var seen conversation
	dialled, err := net.DialTimeout("tcp", words[0], *timeout)
	if err != nil {
		seen.Error = dialError(err)
		return seen
	}
	c := dialled.(*net.TCPConn)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(*timeout))
	seen.Remote, seen.Local = c.RemoteAddr().String(), c.LocalAddr().String()
	sent := make(chan error, 1)
	go func() { sent <- t.write(c, words[1:], &seen.Sent) }()
	t.read(c, &seen)
	if seen.End != "fin" || t.expect >= 0 {
		// Nobody reads what the other side may still be sent.
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	}
	if err := <-sent; err != nil {
		seen.SendError = wire.End(err)
	}
	time.Sleep(t.hold)
	if t.abort {
		_ = c.SetLinger(0)
	}
	return seen
}

func dialError(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return wire.ErrnoName(errno)
	}
	return err.Error()
}

func (t *talker) write(c *net.TCPConn, command []string, sent *int64) error {
	if len(command) > 0 {
		if _, err := fmt.Fprintln(c, strings.Join(command, " ")); err != nil {
			return err
		}
	}
	pattern := wire.NewPattern(uint64(t.send))
	begin := time.Now()
	for *sent < t.send {
		n, err := io.CopyN(c, pattern, min(t.send-*sent, 64*1024))
		*sent += n
		t.count(n)
		if err != nil {
			return err
		}
		if t.rate > 0 {
			due := time.Duration(float64(*sent) / float64(t.rate) * float64(time.Second))
			time.Sleep(due - time.Since(begin))
		}
	}
	if t.halfClose {
		return c.CloseWrite()
	}
	return nil
}

func (t *talker) read(c *net.TCPConn, seen *conversation) {
	sum, wanted := sha256.New(), sha256.New()
	seed := t.seed
	if seed == 0 {
		seed = max(t.expect, t.send)
	}
	pattern := wire.NewPattern(uint64(seed))
	buffer := make([]byte, 64*1024)
	var text []byte
	var err error
	for err == nil && !(t.expect >= 0 && seen.Received >= t.expect && !t.poke) {
		var n int
		room := int64(len(buffer))
		if t.expect > seen.Received {
			room = min(room, t.expect-seen.Received)
		}
		n, err = c.Read(buffer[:room])
		seen.Received += int64(n)
		t.count(int64(n))
		sum.Write(buffer[:n])
		_, _ = io.CopyN(wanted, pattern, int64(n))
		if len(text) < 4096 {
			text = append(text, buffer[:n]...)
		}
		if t.poke && seen.Received == t.expect {
			t.expect = -1
			_, _ = c.Write([]byte{'!'})
		}
	}
	seen.End = wire.End(err)
	if err == nil {
		seen.End = ""
	}
	seen.Checksum = wire.Checksum(sum)
	seen.Matches = seen.Checksum == wire.Checksum(wanted)
	if seen.Received <= 4096 && utf8.Valid(text) {
		seen.Text = string(text)
	}
}

func (t *talker) count(n int64) {
	if t.mark > 0 && t.moved.Add(n) >= t.mark && t.marked.CompareAndSwap(false, true) {
		fmt.Fprintln(os.Stderr, "mark")
	}
}
