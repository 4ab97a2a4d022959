// The echo server: everything a test may want to talk to, in one static program that reports what
// it saw. The ports are in package wire.
package main

import (
	"fmt"
	"log"
	"net"
	"os"

	"tp.internal/testbed/echo/wire"
)

func main() {
	log.SetFlags(0)
	ends := newLedger()
	failed := make(chan error, 8)
	start := func(what string, port int, serve func(net.Listener) error) {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			log.Fatalf("%s: %v", what, err)
		}
		go func() { failed <- fmt.Errorf("%s: %w", what, serve(listener)) }()
	}
	start("echo", wire.PortEcho, func(l net.Listener) error { return serveTCP(l, 0, echo(ends)) })
	start("command", wire.PortCommand, func(l net.Listener) error { return serveTCP(l, 0, command(ends)) })
	start("slow", wire.PortSlow, func(l net.Listener) error { return serveTCP(l, slowAccept, echo(ends)) })
	start("banner", wire.PortBanner, func(l net.Listener) error { return serveTCP(l, 0, banner(ends)) })
	start("http", wire.PortHTTP, serveHTTP)
	start("grpc", wire.PortGRPC, serveGRPC)
	go func() { failed <- fmt.Errorf("udp: %w", serveUDP()) }()
	log.Printf("echo server of pod %s is up", os.Getenv("HOSTNAME"))
	log.Fatal(<-failed)
}
