// Pause is the first process of a PID namespace: of every pod, and of every machine of the cluster. It does nothing but
// reap the orphans that the kernel gives to it, and ends when it is asked to.
package main

import (
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			return
		}
	}
}

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGINT, unix.SIGTERM)
	reap() // children that ended before the handler was there
	for received := range signals {
		if received != unix.SIGCHLD {
			return
		}
		reap()
	}
}
