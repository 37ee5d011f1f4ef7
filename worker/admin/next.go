package admin

import (
	"fmt"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// next says what happens to an open entity by itself, and what is to be done about it, by
// the reason that Decide gave.
func next(t *Type, o *Open, now time.Time) string {
	switch o.Reason {
	case ledger.Done:
		return "nothing: it is done, and this leftover goes with the next call"
	case ledger.Ongoing:
		return nextOfRunning(o)
	}
	if t.Requests {
		return nextOfRequest(o, now)
	}
	switch o.Reason {
	case ledger.Waiting:
		if o.NotBefore != nil && o.NotBefore.After(now) {
			return fmt.Sprintf("wait: another attempt is due in %s", rough(o.NotBefore.Sub(now)))
		}
		return "wait: the done-check is asked when the effect has had its time to show"
	case ledger.Failed:
		if o.Attempts == 0 && o.Run != 0 {
			return fmt.Sprintf("run %d has called it again; if that has ended, 'retry' it", o.Run)
		}
		return "mend the cause, then 'retry' it"
	case ledger.InDoubt:
		return nextOfDoubt(t, o)
	}
	if o.State == "stranded" {
		return "wait for its message to come again; if it does not, 'retry' sends one"
	}
	return "wait: another attempt is due, and its message brings it"
}

func nextOfRunning(o *Open) string {
	switch {
	case o.Owner == nil || o.Owner.Name == "" && o.Owner.DeadAt == nil:
		return "its worker has no row any more, so nobody can take over: see 'doctor'"
	case o.Owner.Late:
		return "its worker is silent: another one declares it dead, then takes over"
	}
	return "wait: its worker has it"
}

func nextOfDoubt(t *Type, o *Open) string {
	switch {
	case o.State == "stranded":
		return "its next message puts it in doubt; if none comes, 'retry' sends one"
	case o.State != string(ledger.Doubtful):
		return "its provider may have forgotten the key: its next message puts it in doubt"
	case t.Checked && t.Effect == ledger.Once:
		return "workers ask its done-check whether it happened; that it did not only you can say, with 'doubt resolve'"
	case t.Checked || t.Effect.NeedsCheck():
		return "workers ask its done-check again; who knows the answer says it with 'doubt resolve'"
	}
	return "find out whether it happened, then say so with 'doubt resolve'"
}

// nextOfRequest is of what comes as requests: only their clients bring it again.
func nextOfRequest(o *Open, now time.Time) string {
	switch {
	case o.State == string(ledger.Doubtful):
		return "find out whether it happened, then say so with 'doubt resolve'; until then its client is told that nobody knows"
	case o.Reason == ledger.InDoubt:
		return "when its client sends it again it is put in doubt; who knows whether it happened says it with 'doubt resolve'"
	case o.Reason == ledger.Waiting && o.NotBefore != nil && o.NotBefore.After(now):
		return fmt.Sprintf("in %s it may be done when its client sends it again; no message carries it", rough(o.NotBefore.Sub(now)))
	case o.Reason == ledger.Waiting:
		return "its effect is given time to show; then it may be done when its client sends it again"
	}
	return "it is done when its client sends it again; no message carries it"
}

// rough is a duration as people say it, in one or two units.
func rough(d time.Duration) string {
	switch {
	case d < time.Second:
		return "a moment"
	case d < 2*time.Minute:
		return d.Round(time.Second).String()
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
