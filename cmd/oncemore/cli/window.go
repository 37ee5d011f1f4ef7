package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// windowFlags bound a time: each by a duration, which is so long ago, or by a point in
// time.
type windowFlags struct{ since, until string }

func (w *windowFlags) add(cmd *cobra.Command, what string) {
	cmd.Flags().StringVar(&w.since, "since", "", what+" so long ago at most (2h30m), or from a `time` on (2026-01-31T15:04:05Z)")
	cmd.Flags().StringVar(&w.until, "until", "", what+" before a `time`")
}

func (w *windowFlags) window() (out admin.Window, err error) {
	if w.since != "" {
		if out.Within, err = time.ParseDuration(w.since); err != nil {
			out.Within = 0
			out.Since, err = parseTime("--since", w.since)
		} else if out.Within <= 0 {
			err = usageError("--since must be a positive duration, or a time")
		}
	}
	if w.until != "" && err == nil {
		out.Until, err = parseTime("--until", w.until)
	}
	return out, err
}

// parseTime reads a point in time. One without a zone is UTC, as all that is shown.
func parseTime(flag, s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05Z", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usageError(fmt.Sprintf("%s: %q is no time: want 2026-01-31T15:04:05Z, or a part of it", flag, s))
}

// stamp shows a point in time.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
