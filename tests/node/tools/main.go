// Tools is what the pods of the tests run, with nothing else in their image:
//
//	serve FOLDER   its files over HTTP on port 8080; a request for /die ends the program
//	get URL        print what is there; a Service may not be known on the node yet, so it tries for 10 s to connect
//	lookup NAME    print its addresses
//	eat MIB        take that much memory, and keep it
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("a command and its argument are needed")
	}
	commands := map[string]func(string) error{"serve": serve, "get": get, "lookup": lookup, "eat": eat}
	command, known := commands[os.Args[1]]
	if !known {
		log.Fatalf("no such command: %s", os.Args[1])
	}
	if err := command(os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func serve(folder string) error {
	files := http.FileServer(http.Dir(folder))
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Printf("%s %s", r.Method, r.URL.Path)
		if r.URL.Path == "/die" {
			os.Exit(1)
		}
		files.ServeHTTP(w, r)
	}))
}

func get(url string) error {
	client := http.Client{Timeout: 10 * time.Second}
	deadline := time.Now().Add(10 * time.Second)
	answer, err := client.Get(url)
	for isDial(err) && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
		answer, err = client.Get(url)
	}
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode >= 400 {
		return fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return nil
}

func isDial(err error) bool {
	var failed *net.OpError
	return errors.As(err, &failed) && failed.Op == "dial"
}

func lookup(name string) error {
	addresses, err := net.LookupHost(name)
	for _, address := range addresses {
		fmt.Println(address)
	}
	return err
}

func eat(mebibytes string) error {
	count, err := strconv.Atoi(mebibytes)
	if err != nil {
		return err
	}
	memory := make([]byte, count<<20)
	for i := range memory {
		memory[i] = 1
	}
	fmt.Printf("%d MiB taken\n", len(memory)>>20)
	select {}
}
