// The tests' client: a static program that resolves with Go's own resolver and prints what it saw
// as one line of JSON. A connection that fails is a result, not a failure of the program.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"
)

const usage = `usage: echo-client VERB [FLAGS] ARGUMENTS
  resolve NAME              addresses of a name
  connect [FLAGS] IP:PORT   one connect() by system call: -blocking, -mapped, -timeout
  talk [FLAGS] HOST:PORT [COMMAND...]
                            a TCP conversation: see talk.go for its flags
  http [-h2c] URL           one request
  ws URL MESSAGE            one WebSocket message there and back
  grpc HOST:PORT            the peer that the server sees, and ten messages there and back
  udp HOST:PORT MESSAGE     one datagram there and back`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	begin := time.Now()
	var result any
	switch os.Args[1] {
	case "resolve":
		result = resolve(flags, os.Args[2:])
	case "connect":
		result = connect(flags, os.Args[2:])
	case "talk":
		result = talk(flags, os.Args[2:])
	case "http":
		result = request(flags, os.Args[2:])
	case "ws":
		result = webSocket(flags, os.Args[2:])
	case "grpc":
		result = call(flags, os.Args[2:])
	case "udp":
		result = datagram(flags, os.Args[2:])
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	text, err := json.Marshal(map[string]any{
		"result": result, "elapsed_ms": float64(time.Since(begin).Microseconds()) / 1000,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(text))
}

func arguments(flags *flag.FlagSet, given []string, least int) []string {
	_ = flags.Parse(given)
	if flags.NArg() < least {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	return flags.Args()
}
