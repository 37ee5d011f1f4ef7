package main

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"strconv"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/sqslocal"
)

//go:embed producer/package.json producer/package-lock.json producer/.npmrc producer/producer.mjs
var program embed.FS

// A producer is a process of the program in the folder producer.
type producer struct {
	node *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	says bytes.Buffer // on stderr
	sent int          // messages that SQS has taken, as it says
}

// startProducer starts one that sends to a queue. It ends with ctx, with its stdin, or when
// it is killed.
func startProducer(ctx context.Context, queueURL string) (*producer, error) {
	files, err := fs.Sub(program, "producer")
	if err != nil {
		return nil, err
	}
	dir, err := sqslocal.Install(ctx, "example-sqs", files)
	if err != nil {
		return nil, fmt.Errorf("install the producer: %w", err)
	}
	p := &producer{node: exec.CommandContext(ctx, "node", "producer.mjs", queueURL)}
	p.node.Dir, p.node.Stderr = dir, &p.says
	out, err := p.node.StdoutPipe()
	if err == nil {
		p.out = bufio.NewScanner(out)
		p.in, err = p.node.StdinPipe()
	}
	if err == nil {
		err = p.node.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start the producer: %w", err)
	}
	return p, nil
}

// ask gives it invitations to ask for, and returns when SQS has taken them. They must be
// tens, since so many it sends at once.
func (p *producer) ask(all []invitation) error {
	var lines bytes.Buffer
	for _, i := range all {
		fmt.Fprintln(&lines, i.Event, i.Invitee)
	}
	if _, err := lines.WriteTo(p.in); err != nil {
		return p.failed(err)
	}
	for want := p.sent + len(all); p.sent < want; {
		if !p.out.Scan() {
			return p.failed(errors.Join(errors.New("it ended before its time"), p.out.Err()))
		}
		n, err := strconv.Atoi(p.out.Text())
		if err != nil {
			return p.failed(err)
		}
		p.sent = n
	}
	return nil
}

func (p *producer) failed(err error) error {
	_ = p.node.Process.Kill() // it fails only when the process has ended
	_ = p.node.Wait()
	return fmt.Errorf("the producer: %w: %s", err, bytes.TrimSpace(p.says.Bytes()))
}

// end tells it that there is no more, and returns when it has ended.
func (p *producer) end() error {
	_ = p.in.Close()
	if err := p.node.Wait(); err != nil {
		return fmt.Errorf("the producer: %w: %s", err, bytes.TrimSpace(p.says.Bytes()))
	}
	return nil
}

// kill is kill -9; it returns when the process is gone.
func (p *producer) kill() error {
	if err := p.node.Process.Kill(); err != nil {
		return fmt.Errorf("kill the producer: %w", err)
	}
	_ = p.node.Wait() // how it ended, we know
	return nil
}
