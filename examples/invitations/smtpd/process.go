package smtpd

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
)

// Addresses is the one line of JSON that [Main] prints when the server can be reached.
type Addresses struct {
	SMTP    string `json:"smtp"`    // host and port
	Control string `json:"control"` // URL
}

// Main is the server as a program: it reads flags, prints its [Addresses] to
// stdout, and ends when stdin does, so that it cannot outlive the parent that holds
// the other end of the pipe. It ignores interrupts: a Ctrl-C in a terminal is for the parent,
// which may still want to send mail while it stops.
func Main(args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("smtpd", flag.ContinueOnError)
	addr := flags.String("smtp", "127.0.0.1:0", "address to serve SMTP on")
	var o Options
	flags.StringVar(&o.Control, "http", "127.0.0.1:0", "loopback address of the control port")
	flags.StringVar(&o.File, "file", "", "file that keeps accepted messages; empty: in memory only")
	flags.BoolVar(&o.Dedupe, "dedupe", false, "keep a repeated Message-ID out of the mailbox")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	signal.Ignore(os.Interrupt)
	s, err := Start(*addr, o)
	if err != nil {
		return err
	}
	err = json.NewEncoder(stdout).Encode(Addresses{SMTP: s.Addr(), Control: s.ControlURL()})
	if err == nil {
		_, err = io.Copy(io.Discard, stdin)
	}
	return errors.Join(err, s.Close())
}

// A Process is a server in a process of its own.
type Process struct {
	Addresses
	cmd   *exec.Cmd
	stdin io.Closer
}

// Spawn starts cmd, a program that calls [Main], and returns when its server can be
// reached. To start it again where it was, give it the same addresses and file.
func Spawn(cmd *exec.Cmd) (*Process, error) {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start mail server: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start mail server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start mail server: %w", err)
	}
	p := &Process{cmd: cmd, stdin: stdin}
	if err := json.NewDecoder(stdout).Decode(&p.Addresses); err != nil {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("start mail server: it did not say where it listens: %w", errors.Join(err, cmd.Wait()))
	}
	return p, nil
}

// Stop ends the process in order and waits for it.
func (p *Process) Stop() error {
	_ = p.stdin.Close()
	return p.cmd.Wait()
}

// Kill ends the process with SIGKILL and waits for it. What it had accepted is in its file.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}
