package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// A reran is what the command rerun says.
type reran struct {
	Action   string         `json:"action"`
	Type     string         `json:"job_type"`
	Database string         `json:"database"`
	DryRun   bool           `json:"dry_run"`
	Preview  *admin.Preview `json:"preview"`
	Run      int64          `json:"run"`     // 0: none was begun
	Joined   bool           `json:"joined"`  // the same was asked for before: that run is it
	Planned  bool           `json:"planned"` // it was being worked already
	Audit    int64          `json:"audit"`
	Watched  *admin.Run     `json:"watched,omitempty"` // to its end
}

// proposal is what a person is asked about.
func (r *rerunning) proposal(out *reran) *proposal {
	p := out.Preview
	entities := several(int(p.Items), "entity", "entities")
	switch {
	case r.order.Limit > 0 && p.Items >= r.order.Limit: // whatever else the workers find, it is as many
	case p.Unknown != "" && p.Items == 0:
		entities = "what the workers find"
	case p.Capped:
		entities = "more than " + entities
	case p.Unknown != "":
		entities = "at least " + entities
	}
	return &proposal{what: "re-run " + entities + " of " + p.Type, Database: out.Database, Matched: int(p.Items), rows: pickedRows(p), then: r.words(p)}
}

// words tell what the preview says, a line each.
func (r *rerunning) words(p *admin.Preview) []string {
	lines := []string{"Selected: " + p.How + "."}
	for _, reason := range ledger.Reasons {
		n := p.Seen[reason]
		if n == 0 {
			continue
		}
		line := fmt.Sprintf("%14s  %s", thousands(n), reasonWords(reason))
		switch picked := p.Picked[reason]; {
		case reason == ledger.Done && p.Unknown != "": // as far as is known here: some of it may be stale
		case picked == 0:
			line += ": left alone"
		case picked < n:
			line += fmt.Sprintf(": %s of them are picked", thousands(picked))
		}
		lines = append(lines, line)
	}
	if p.Capped && r.order.Limit > 0 {
		lines = append(lines, fmt.Sprintf("There may be more; the --limit is %s.", thousands(r.order.Limit)))
	} else if p.Capped {
		lines = append(lines, "There may be more: the preview has ended there.")
	}
	if p.Unknown != "" {
		lines = append(lines, strings.ToUpper(p.Unknown[:1])+p.Unknown[1:]+".")
	}
	switch e := p.Estimate; {
	case e != nil && p.Unknown != "":
		lines = append(lines, fmt.Sprintf("That may take %s, and what the workers find comes on top: %s.", span(e.Seconds), e.Rests))
	case e != nil:
		lines = append(lines, fmt.Sprintf("It may take %s: %s.", span(e.Seconds), e.Rests))
	case p.Items > 0:
		lines = append(lines, "How long it takes cannot be told: too little of it was completed lately.")
	}
	if g := p.Going; g != nil && !g.Planned {
		lines = append(lines, fmt.Sprintf("Run %d of the same is being planned: this joins it.", g.Run))
	}
	return lines
}

func pickedRows(p *admin.Preview) rows {
	table := rows{{"ENTITY", "REASON"}}
	for _, it := range p.First {
		table = append(table, []string{cell(quoted(it.Entity), wide), reasonWords(it.Reason)})
	}
	return table
}

func reasonWords(r ledger.Reason) string { return strings.ReplaceAll(string(r), "_", " ") }

// tell writes what a dry run found, or that there is nothing to do.
func (r *rerunning) tell(cmd *cobra.Command, out *reran) error {
	if *r.mutation.output == "json" {
		if err := writeJSON(cmd.OutOrStdout(), out); err != nil {
			return err
		}
	} else if err := pickedRows(out.Preview).write(cmd.OutOrStdout()); err != nil {
		return err
	}
	w, p := cmd.ErrOrStderr(), out.Preview
	if n := p.Items - int64(len(p.First)); n > 0 && *r.mutation.output != "json" {
		fmt.Fprintf(w, "and %s more\n", thousands(n))
	}
	for _, line := range r.words(p) {
		fmt.Fprintln(w, line)
	}
	if out.DryRun {
		fmt.Fprintf(w, "dry run: it would %s, in the database %s\n", r.proposal(out).what, out.Database)
		if g := p.Going; g != nil && g.Planned {
			fmt.Fprintf(w, "run %d of the same is being worked: it would be followed instead\n", g.Run)
		}
		return nil
	}
	fmt.Fprintln(w, "nothing matches; nothing was changed")
	return nil
}

// follow says which run it is, and follows it where that is wanted.
func (r *rerunning) follow(cmd *cobra.Command, pool *pgxpool.Pool, out *reran) error {
	asJSON := *r.mutation.output == "json"
	if !asJSON {
		if err := out.write(cmd.OutOrStdout()); err != nil {
			return err
		}
	}
	w := cmd.ErrOrStderr()
	if out.Planned {
		r, _, err := (&admin.Watch{Pool: pool, Run: out.Run}).Look(cmd.Context())
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "run %d of the same is being worked already: %s; nothing was changed\n", out.Run, progressWords(r))
	} else if out.Joined {
		fmt.Fprintf(w, "run %d of the same is being planned: it was joined\n", out.Run)
	}
	watch, err := r.toWatch(cmd, out)
	if err != nil {
		return err
	}
	if watch {
		if out.Watched, err = r.program.watch(cmd, pool, out.Run, r.interval, *r.mutation.output); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(w, "to follow it: %s runs watch %d\n", r.program.Name, out.Run)
	}
	if asJSON {
		err = writeJSON(cmd.OutOrStdout(), out)
	}
	if err != nil || !watch {
		return err
	}
	return r.program.verdict(cmd, out.Watched)
}

// toWatch tells whether the run is to be followed; who asked for one that is being worked
// already may say so now.
func (r *rerunning) toWatch(cmd *cobra.Command, out *reran) (bool, error) {
	if r.watch || !out.Planned || r.mutation.yes || *r.mutation.output == "json" || !r.program.interactive(cmd.InOrStdin()) {
		return r.watch, nil
	}
	fmt.Fprint(cmd.ErrOrStderr(), "\nFollow it? [y/N] ")
	answer, err := readLine(cmd.Context(), cmd.InOrStdin())
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

func (out *reran) write(w io.Writer) error {
	came, audit := "opened", "-"
	switch {
	case out.Planned:
		came = "goes on"
	case out.Joined:
		came = "joined"
	}
	if out.Audit != 0 {
		audit = fmt.Sprint(out.Audit)
	}
	t := newTable(w, "ACTION", "TYPE", "RUN", "WAS", "AUDIT")
	t.row("rerun", cell(out.Type, wide), fmt.Sprint(out.Run), came, audit)
	return t.Flush()
}
