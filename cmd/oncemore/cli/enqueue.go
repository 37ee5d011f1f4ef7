package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) enqueueCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "enqueue TYPE ARGS-JSON...", Short: "Enqueue work by its arguments; - reads JSON lines",
		Long: `Enqueue work by its arguments as JSON, or with - by one JSON object on each line of stdin.

Everything is looked through first: where anything is wrong, each mistake is named with
its line and nothing is enqueued. What is done already is skipped by the worker that
receives it, so it does no harm to enqueue it again.

A program that has the jobs makes the entity of the arguments. One that does not must be
told: --entity for one, or --key with the fields that make it, as in jobs.Key.`,
		Example: `  oncemore enqueue invitation --key event_id,invitee_id '{"event_id":234,"invitee_id":17}'
  psql -qtAc "SELECT row_to_json(i) FROM invitees i" | acme enqueue invitation - --yes`,
		Args: cobra.MinimumNArgs(2), ValidArgsFunction: p.completeTypes}
	m := p.mutates(cmd, false)
	m.sends(cmd)
	var e enqueuing
	cmd.Flags().StringVar(&e.entity, "entity", "", "the `entity` of the one ARGS-JSON")
	cmd.Flags().StringSliceVar(&e.key, "key", nil, "the `fields` of the arguments that make the entity, with commas between")
	cmd.RunE = m.run(func(cmd *cobra.Command, args []string, op *admin.Operator) (*proposal, error) {
		inputs, err := e.inputs(cmd, args[1:])
		if err != nil {
			return nil, err
		}
		batch, err := op.Prepare(cmd.Context(), args[0], inputs)
		if err != nil {
			return nil, err
		}
		return batchProposal(op, batch, m.reason), nil
	}, func(_ *cobra.Command, args []string) error {
		if args[1] == "-" && !m.yes && !m.dryRun {
			return usageError("the input is the work, so nobody can be asked: say --yes, or look with --dry-run")
		}
		return e.check(args[1:])
	})
	return cmd
}

func batchProposal(op *admin.Operator, b *admin.Batch, reason string) *proposal {
	type item struct {
		Entity string          `json:"entity"`
		Args   json.RawMessage `json:"args"`
	}
	sample := []item{}
	table := rows{{"ENTITY", "ARGUMENTS"}}
	for _, it := range sampleOf(b.Items) {
		sample = append(sample, item{it.Entity, it.Args})
		table = append(table, []string{cell(quoted(it.Entity), wide), cell(string(it.Args), narrow)})
	}
	out := &proposal{Action: "enqueue", Type: b.Type, Matched: len(b.Items), Sample: sample, rows: table,
		what: "enqueue " + several(len(b.Items), "entity", "entities") + " of " + b.Type}
	if b.Twice > 0 {
		out.then = []string{fmt.Sprintf("%s said the same as another one, and is enqueued once.", several(b.Twice, "input", "inputs"))}
	}
	out.do = func(ctx context.Context) (*admin.Result, error) { return op.Enqueue(ctx, b, reason) }
	return out
}

// enqueuing says where entities come from.
type enqueuing struct {
	entity string
	key    []string
}

func (e *enqueuing) check(args []string) error {
	switch {
	case e.entity != "" && (len(args) != 1 || args[0] == "-"):
		return usageError("--entity is of one ARGS-JSON; for several say --key")
	case e.entity != "" && len(e.key) > 0:
		return usageError("--entity and --key: one of the two")
	}
	return nil
}

// inputs reads all that is to be enqueued. What is wrong with it is told with the rest,
// when it is looked through.
func (e *enqueuing) inputs(cmd *cobra.Command, args []string) ([]admin.Input, error) {
	var inputs []admin.Input
	for n, arg := range args {
		if arg == "-" && len(args) == 1 {
			return e.lines(cmd.InOrStdin())
		}
		inputs = append(inputs, e.input([]byte(arg), fmt.Sprintf("argument %d", n+1)))
	}
	return inputs, nil
}

func (e *enqueuing) lines(in io.Reader) (inputs []admin.Input, err error) {
	r := bufio.NewReader(in)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			inputs = append(inputs, e.input(line, fmt.Sprintf("line %d", n)))
		}
		if errors.Is(err, io.EOF) {
			return inputs, nil
		} else if err != nil {
			return nil, fmt.Errorf("read line %d of stdin: %w", n, err)
		}
	}
}

func (e *enqueuing) input(args []byte, where string) admin.Input {
	in := admin.Input{Entity: e.entity, Args: args, Where: where}
	if len(e.key) > 0 {
		if in.Entity, in.Err = keyOf(args, e.key); in.Err != nil {
			in.Entity = ""
		}
	}
	return in
}

// keyOf makes the entity as jobs.Key does of the fields.
func keyOf(args []byte, fields []string) (string, error) {
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(args))
	d.UseNumber() // as they are written: large ones too
	if err := d.Decode(&object); err != nil {
		return "", fmt.Errorf("is no JSON object: %w", err)
	}
	parts := make([]any, len(fields))
	for i, name := range fields {
		switch v := object[strings.TrimSpace(name)].(type) {
		case string, bool:
			parts[i] = v
		case json.Number:
			parts[i] = v.String()
		default:
			return "", fmt.Errorf("has no field %q that is a text, a number or a truth", name)
		}
	}
	return jobs.Key(parts...), nil
}
