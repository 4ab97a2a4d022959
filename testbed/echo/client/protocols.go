package main

import (
	"context"
	"encoding/hex"
	"flag"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"tp.internal/testbed/echo/wire"
)

const patience = 20 * time.Second

type answer struct {
	Status   int    `json:"status,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	Remote   string `json:"remote,omitempty"`
	Text     string `json:"text"`
	Messages int    `json:"messages,omitempty"`
	Error    string `json:"error"`
}

func request(flags *flag.FlagSet, given []string) any {
	h2c := flags.Bool("h2c", false, "speak HTTP/2 without TLS")
	url := arguments(flags, given, 1)[0]
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!*h2c)
	protocols.SetUnencryptedHTTP2(*h2c)
	client := http.Client{Timeout: patience, Transport: &http.Transport{Protocols: protocols}}
	response, err := client.Get(url)
	if err != nil {
		return answer{Error: dialError(err)}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{Error: dialError(err)}
	}
	return answer{Status: response.StatusCode, Protocol: response.Proto, Text: string(body)}
}

func webSocket(flags *flag.FlagSet, given []string) any {
	words := arguments(flags, given, 2)
	connection, _, err := websocket.DefaultDialer.Dial(words[0], nil)
	if err != nil {
		return answer{Error: dialError(err)}
	}
	defer connection.Close()
	_ = connection.SetReadDeadline(time.Now().Add(patience))
	if err := connection.WriteMessage(websocket.TextMessage, []byte(words[1])); err != nil {
		return answer{Error: dialError(err)}
	}
	_, message, err := connection.ReadMessage()
	if err != nil {
		return answer{Error: dialError(err)}
	}
	return answer{Text: string(message), Remote: connection.RemoteAddr().String()}
}

func call(flags *flag.FlagSet, given []string) any {
	target := arguments(flags, given, 1)[0]
	client, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return answer{Error: err.Error()}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	peer := new(wrapperspb.StringValue)
	if err := client.Invoke(ctx, wire.MethodPeer, wrapperspb.String(""), peer); err != nil {
		return answer{Error: err.Error()}
	}
	stream, err := client.NewStream(ctx, &wire.StreamDesc, wire.MethodStream)
	if err != nil {
		return answer{Error: err.Error()}
	}
	seen := answer{Text: peer.Value}
	for ; seen.Messages < 10; seen.Messages++ {
		if err := stream.SendMsg(wrapperspb.Bytes(make([]byte, 10_000))); err != nil {
			seen.Error = err.Error()
			return seen
		}
		if err := stream.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			seen.Error = err.Error()
			return seen
		}
	}
	return seen
}

func datagram(flags *flag.FlagSet, given []string) any {
	timeout := flags.Duration("timeout", 3*time.Second, "for the answer")
	binary := flags.Bool("hex", false, "message and answer are hexadecimal digits")
	words := arguments(flags, given, 2)
	message := []byte(words[1])
	if *binary {
		decoded, err := hex.DecodeString(words[1])
		if err != nil {
			return answer{Error: err.Error()}
		}
		message = decoded
	}
	socket, err := net.Dial("udp", words[0])
	if err != nil {
		return answer{Error: dialError(err)}
	}
	defer socket.Close()
	_ = socket.SetDeadline(time.Now().Add(*timeout))
	if _, err := socket.Write(message); err != nil {
		return answer{Error: dialError(err)}
	}
	buffer := make([]byte, 64*1024)
	n, err := socket.Read(buffer)
	if err != nil {
		return answer{Error: wire.End(err)}
	}
	text := string(buffer[:n])
	if *binary {
		text = hex.EncodeToString(buffer[:n])
	}
	return answer{Text: text, Remote: socket.RemoteAddr().String()}
}
