package main

import (
	"context"
	"flag"
	"net"
	"net/netip"
	"syscall"
	"time"

	"tp.internal/testbed/echo/wire"
)

type resolved struct {
	Addresses []string `json:"addresses"`
	Error     string   `json:"error"`
}

func resolve(flags *flag.FlagSet, given []string) any {
	name := arguments(flags, given, 1)[0]
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return resolved{Error: err.Error()}
	}
	return resolved{Addresses: addresses}
}

type connected struct {
	// Error is the errno's symbol; empty for success.
	Error string `json:"error"`
	Peer  string `json:"peer"`
	Local string `json:"local"`
}

// connect does with bare system calls what a program without Go's runtime would do.
func connect(flags *flag.FlagSet, given []string) any {
	blocking := flags.Bool("blocking", false, "block in connect()")
	mapped := flags.Bool("mapped", false, "use an IPv6 socket and an IPv4-mapped address")
	timeout := flags.Duration("timeout", 15*time.Second, "for the non-blocking kind")
	target, err := netip.ParseAddrPort(arguments(flags, given, 1)[0])
	if err != nil {
		return connected{Error: err.Error()}
	}
	family := syscall.AF_INET
	var address syscall.Sockaddr = &syscall.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}
	if *mapped {
		family = syscall.AF_INET6
		address = &syscall.SockaddrInet6{Port: int(target.Port()), Addr: target.Addr().As16()}
	}
	socket, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return connected{Error: err.Error()}
	}
	defer syscall.Close(socket)
	if *blocking {
		err = syscall.Connect(socket, address)
	} else {
		err = connectLater(socket, address, *timeout)
	}
	if errno, ok := err.(syscall.Errno); ok {
		return connected{Error: wire.ErrnoName(errno)}
	}
	if err != nil {
		return connected{Error: err.Error()}
	}
	peer, _ := syscall.Getpeername(socket)
	local, _ := syscall.Getsockname(socket)
	return connected{Peer: printed(peer), Local: printed(local)}
}

// connectLater connects a non-blocking socket, waits until it is writable and asks how it went.
func connectLater(socket int, address syscall.Sockaddr, timeout time.Duration) error {
	if err := syscall.SetNonblock(socket, true); err != nil {
		return err
	}
	err := syscall.Connect(socket, address)
	if err != syscall.EINPROGRESS {
		return err
	}
	queue, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer syscall.Close(queue)
	event := syscall.EpollEvent{Events: syscall.EPOLLOUT, Fd: int32(socket)}
	if err := syscall.EpollCtl(queue, syscall.EPOLL_CTL_ADD, socket, &event); err != nil {
		return err
	}
	end := time.Now().Add(timeout)
	for {
		n, err := syscall.EpollWait(queue, []syscall.EpollEvent{{}}, int(time.Until(end).Milliseconds()))
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return context.DeadlineExceeded
		}
		value, err := syscall.GetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err != nil || value == 0 {
			return err
		}
		return syscall.Errno(value)
	}
}

func printed(address syscall.Sockaddr) string {
	switch a := address.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *syscall.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	default:
		return ""
	}
}
