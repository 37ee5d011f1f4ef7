package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

const (
	barEvery  = 500 * time.Millisecond // on a terminal
	lineEvery = 5 * time.Second        // elsewhere
)

// A statusLine is one line below all others that is written over. Where it is no terminal
// there is none.
type statusLine struct {
	w    io.Writer
	live bool
	is   bool
}

func newStatusLine(w io.Writer) *statusLine { return &statusLine{w: w, is: isTerminal(w)} }

// show writes the line over. A terminal that is too narrow cuts it, instead of wrapping.
func (l *statusLine) show(text string) {
	if l.is {
		fmt.Fprintf(l.w, "\r\x1b[?7l%s\x1b[K\x1b[?7h", text)
		l.live = true
	}
}

func (l *statusLine) clear() {
	if l.live {
		fmt.Fprint(l.w, "\r\x1b[K")
		l.live = false
	}
}

// watch follows a run to its end. An interrupt ends the watching, not the run.
func (p *program) watch(cmd *cobra.Command, pool *pgxpool.Pool, id int64, interval time.Duration, output string) (*admin.Run, error) {
	ctx, told := cmd.Context(), cmd.ErrOrStderr()
	line := newStatusLine(told)
	defer line.clear()
	tick := time.NewTicker(min(interval, barEvery))
	defer tick.Stop()
	w := &admin.Watch{Pool: pool, Run: id}
	var shown, blind time.Time // a line was shown; looks have failed since
	for {
		r, now, err := w.Look(ctx)
		switch {
		case ctx.Err() != nil:
			line.clear()
			return nil, p.notWatched(id)
		case errors.Is(err, worker.ErrNoRun):
			return nil, err
		case err != nil:
			// The database may restart under a run, which goes on afterwards.
			if blind.IsZero() {
				blind = time.Now()
				line.clear()
				fmt.Fprintf(told, "not seen, and looked for again: %s\n", cell(err.Error(), narrow))
			} else if time.Since(blind) > blindMost {
				return nil, err
			}
		default:
			blind = time.Time{}
			due := time.Since(shown) >= interval || r.State.Over()
			switch {
			case output == "jsonl" && due:
				err = writeLine(cmd.OutOrStdout(), r)
			case line.is:
				line.show(bar(told, r))
			case due:
				fmt.Fprintf(told, "%s  run %d: %s\n", now.UTC().Format("15:04:05Z"), id, progressWords(r))
			}
			if due {
				shown = time.Now()
			}
			if err != nil || r.State.Over() {
				return r, err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// notWatched tells who has interrupted the watching what goes on without them.
func (p *program) notWatched(id int64) error {
	story := fmt.Sprintf("Not watched any more: run %d goes on in the workers.", id)
	for _, what := range []string{"watch", "pause", "resume", "cancel"} {
		story += fmt.Sprintf("\n  to %-7s %s runs %s %d", what+":", p.Name, what, id)
	}
	return failure{errors.New(story), exitInterrupted}
}

// blindMost is how long a database may be away from somebody who watches.
const blindMost = time.Minute

// verdict says what came of a run, and has the exit code say it.
func (p *program) verdict(cmd *cobra.Command, r *admin.Run) error {
	story := fmt.Sprintf("run %d %s: %s", r.ID, stateWords(r.State), r.Words())
	if r.State == admin.Complete {
		fmt.Fprintln(cmd.ErrOrStderr(), painted(cmd.ErrOrStderr(), green, story))
		return nil
	}
	if r.Failed+r.InDoubt > 0 {
		story += fmt.Sprintf("\nwhich, and why: %s runs show %d", p.Name, r.ID)
	}
	return failure{errors.New(story), exitPartly}
}

func stateWords(s admin.RunState) string {
	switch s {
	case admin.Complete:
		return "is complete"
	case admin.Cancelled:
		return "was cancelled"
	case admin.Ended:
		return "has ended, and is not complete"
	}
	return "is " + string(s)
}

// bar is a run as one line of a terminal.
func bar(w io.Writer, r *admin.Run) string {
	const width = 24
	part := 0.0
	if r.Items > 0 {
		part = float64(r.Items-r.NotSent-r.Open-r.Missing) / float64(r.Items)
	}
	full := int(part * width)
	c := green
	switch {
	case r.Failed+r.InDoubt > 0:
		c = red
	case r.State != admin.Going:
		c = yellow
	}
	return fmt.Sprintf("%s%s %3d%%  %s", painted(w, c, strings.Repeat("█", full)), strings.Repeat("░", width-full), int(part*100), progressWords(r))
}

// progressWords is how far a run is, how fast, and what holds it up.
func progressWords(r *admin.Run) string {
	if r.State == admin.Planning {
		if r.Items > 0 {
			return "planning, " + thousands(r.Items) + " so far"
		}
		return "planning"
	}
	words := r.Words()
	if r.State.Over() {
		return words + ", " + string(r.State)
	}
	if r.Pace > 0 {
		words += ", " + perSecond(r.Pace)
	}
	if r.ETA != nil {
		words += ", " + span(*r.ETA) + " left"
	}
	if r.Waits != "" {
		words += "; waits: " + cell(r.Waits, narrow)
	} else if r.State != admin.Going {
		words += "; " + string(r.State)
	}
	return words
}

func perSecond(n float64) string {
	if n < 10 {
		return fmt.Sprintf("%.2g/s", n)
	}
	return thousands(int64(n)) + "/s"
}

// span is a time in seconds as people say it, in one or two units.
func span(seconds float64) string {
	d := time.Duration(min(seconds, 1e9) * float64(time.Second))
	switch {
	case d < time.Second:
		return "less than a second"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
