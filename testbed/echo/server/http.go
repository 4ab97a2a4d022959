package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/gorilla/websocket"
)

// seenRequest is the body of every HTTP answer.
type seenRequest struct {
	Pod      string      `json:"pod"`
	Protocol string      `json:"protocol"`
	Method   string      `json:"method"`
	Host     string      `json:"host"`
	Path     string      `json:"path"`
	Remote   string      `json:"remote"`
	Local    string      `json:"local"`
	Headers  http.Header `json:"headers"`
	Received int64       `json:"received"`
}

func serveHTTP(listener net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", serveWebSocket)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		received, _ := io.Copy(io.Discard, r.Body)
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(seenRequest{
			Pod: os.Getenv("HOSTNAME"), Protocol: r.Proto, Method: r.Method, Host: r.Host,
			Path: r.URL.RequestURI(), Remote: r.RemoteAddr, Local: local.String(),
			Headers: r.Header, Received: received,
		})
	})
	return (&http.Server{Handler: mux, Protocols: protocols}).Serve(listener)
}

func serveWebSocket(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer connection.Close()
	for {
		kind, message, err := connection.ReadMessage()
		if err != nil {
			return
		}
		if connection.WriteMessage(kind, message) != nil {
			return
		}
	}
}
