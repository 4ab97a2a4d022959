package main

import (
	"net"

	"google.golang.org/grpc"

	"tp.internal/testbed/echo/wire"
)

func serveGRPC(listener net.Listener) error {
	server := grpc.NewServer()
	wire.RegisterEcho(server)
	return server.Serve(listener)
}
