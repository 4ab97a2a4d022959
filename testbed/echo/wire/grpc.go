package wire

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The service tp.test.Echo is small enough to be described by hand: Peer answers with the address
// of the caller, Stream sends every message back.
const (
	MethodPeer   = "/tp.test.Echo/Peer"
	MethodStream = "/tp.test.Echo/Stream"
)

// StreamDesc describes MethodStream.
var StreamDesc = grpc.StreamDesc{
	StreamName: "Stream", Handler: stream, ServerStreams: true, ClientStreams: true,
}

// RegisterEcho adds tp.test.Echo to a server.
func RegisterEcho(server *grpc.Server) {
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "tp.test.Echo",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Peer", Handler: peerOf}},
		Streams:     []grpc.StreamDesc{StreamDesc},
	}, struct{}{})
}

func peerOf(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	if err := decode(new(wrapperspb.StringValue)); err != nil {
		return nil, err
	}
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("the call has no peer")
	}
	return wrapperspb.String(caller.Addr.String()), nil
}

func stream(_ any, s grpc.ServerStream) error {
	for {
		message := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(message); err != nil {
			return err
		}
	}
}
