// Command all plays all examples, one after the other, and ends with a table of their ideas and
// proofs. It exits with status 1 when one of them failed.
//
//	go run ./examples/all
//	go run ./examples/all signup counter
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// A show is one example.
type show struct {
	name   string
	idea   string
	proves string   // what its exit status says, for those that print no line "proof: …"
	args   []string // of its program
	folder string   // of its package; empty: examples/ and its name
}

var shows = []show{
	{name: "demo", folder: "cmd/oncemore", args: []string{"demo"}, idea: "call it again after an outage: what is missing gets done",
		proves: "everybody has one invitation, by the mail server's count, after an outage and a kill -9"},
	{name: "profiles", idea: "backfill a live table: just the rows that lack it"},
	{name: "tags", idea: "a cache that is rebuilt from its source, at any time"},
	{name: "sqs", idea: "messages over Amazon SQS, from a producer in another language"},
	{name: "orders", idea: "state transitions as keys: cart → ordered → paid → shipped"},
	{name: "signup", idea: "idempotency key: a POST under a request id, bound to a session"},
	{name: "publish", idea: "natural idempotency: create empty, update, delete"},
	{name: "counter", idea: "what is not idempotent: counter + 1, and the transaction of the fact"},
	{name: "countries", idea: "build artefacts as entities, rebuilt by version and not by clock"},
	{name: "platform", idea: "configuration from the environment alone (twelve-factor)"},
	{name: "timeouts", idea: "fail up, degrade, retry, circuit breaker"},
}

// A performance is a show that can begin, and then how it went.
type performance struct {
	show
	command []string

	took time.Duration
	said string // the last of its lines "proof: …"
	err  error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := perform(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "all:", err)
		stop()
		os.Exit(1)
	}
}

func perform(ctx context.Context, names []string) error {
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "oncemore-examples-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(dir)
	var ps []*performance
	for _, s := range chosen {
		program := filepath.Join(dir, s.name)
		p := &performance{show: s, command: append([]string{program}, s.args...)}
		build := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/oncemore-jobs/oncemore/"+s.path())
		if out, err := build.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("it does not build: %s", out)
		}
		ps = append(ps, p)
	}
	return play(ctx, os.Stdout, ps)
}

func (s show) path() string {
	if s.folder != "" {
		return s.folder
	}
	return "examples/" + s.name
}

// choose returns the shows with these names; all of them for none.
func choose(names []string) (chosen []show, err error) {
	for _, n := range names {
		i := slices.IndexFunc(shows, func(s show) bool { return s.name == n })
		if i < 0 {
			return nil, fmt.Errorf("there is no example %q", n)
		}
		chosen = append(chosen, shows[i])
	}
	if len(names) == 0 {
		return shows, nil
	}
	return chosen, nil
}

// play plays them one after the other, then writes the table. Its error says that not all is well.
func play(ctx context.Context, out io.Writer, ps []*performance) error {
	failed := 0
	for i, p := range ps {
		fmt.Fprintf(out, "== %s: %s\n", p.name, p.idea)
		p.play(ctx, out)
		fmt.Fprintln(out)
		if p.err != nil {
			failed++
		}
		if ctx.Err() != nil {
			ps = ps[:i+1]
			break
		}
	}
	table(out, ps)
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case failed > 0:
		return fmt.Errorf("%d of %d examples failed", failed, len(ps))
	}
	return nil
}

func (p *performance) play(ctx context.Context, out io.Writer) {
	if p.err != nil {
		fmt.Fprintln(out, p.err)
		return
	}
	cmd := exec.CommandContext(ctx, p.command[0], p.command[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it ends what it has started
	cmd.WaitDelay = 30 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(out, &said), out
	began := time.Now()
	p.err = cmd.Run()
	p.took = time.Since(began)
	for line := range strings.Lines(said.String()) {
		if proof, ok := strings.CutPrefix(line, "proof: "); ok {
			p.said = strings.TrimSpace(proof)
		}
	}
	if p.err == nil && p.said == "" && p.proves == "" {
		p.err = errors.New("it proves nothing")
	}
}

func table(out io.Writer, ps []*performance) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "EXAMPLE\tIDEA\tPROOF\tSECONDS\t\t")
	for _, p := range ps {
		proof, verdict := p.said, "ok"
		if proof == "" {
			proof = p.proves
		}
		if p.err != nil {
			proof, verdict = p.err.Error(), "FAILED"
		}
		ideas, proofs := wrap(p.idea, 36), wrap(proof, 60)
		for i := range max(len(ideas), len(proofs)) {
			var name, idea, line, seconds, end string
			if i == 0 {
				name, seconds, end = p.name, fmt.Sprintf("%.1f", p.took.Seconds()), verdict
			}
			if i < len(ideas) {
				idea = ideas[i]
			}
			if i < len(proofs) {
				line = proofs[i]
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t\n", name, idea, line, seconds, end)
		}
	}
}

// wrap breaks text between words, into lines of at most so many characters where it can.
func wrap(text string, most int) (lines []string) {
	for _, word := range strings.Fields(text) {
		if n := len(lines); n > 0 && len([]rune(lines[n-1]))+1+len([]rune(word)) <= most {
			lines[n-1] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}
