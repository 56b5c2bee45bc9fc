// What hashicorp/http-echo does in the tutorials, with the system calls that the tutorial's
// fine-grained profile allows: it answers every request on port 5678 with one text.
package main

import (
	"flag"
	"fmt"
	"os"
	"syscall"
)

func main() {
	text := flag.String("text", "", "the answer")
	flag.Parse()
	listener, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.Bind(listener, &syscall.SockaddrInet4{Port: 5678})
	}
	if err == nil {
		err = syscall.Listen(listener, 16)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening on :5678")
	answer := fmt.Sprintf("HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s\n", len(*text)+1, *text)
	buffer := make([]byte, 4096)
	for {
		client, _, err := syscall.Accept4(listener, syscall.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		syscall.Read(client, buffer)
		syscall.Write(client, []byte(answer))
		syscall.Close(client)
	}
}
