//go:build linux

package chaos_test

import (
	"slices"
	"testing"
	"time"
)

// outOfMemory is what a Go program says when it dies for want of memory; the last two with
// a race detector.
var outOfMemory = []string{"fatal error: out of memory", "cannot allocate memory", "ThreadSanitizer failed to allocate", "address space collisions for -race mode"}

// One item of a pack ends whatever process works it. Two processes work, and are started
// again whenever they die. The item is found, its attempts are counted although nobody
// lives to report them, and it is listed; its neighbours are done.
func TestAPoisonItemInAPackIsFoundAndListedAndItsNeighboursAreDone(t *testing.T) {
	t.Parallel()
	const attempts = 4
	for name, c := range map[string]struct {
		jobType, how string
		onlyFull     bool
	}{
		"os.Exit, keyed":              {"keyed", "exit", true},
		"out of memory, keyed":        {"keyed", "gobble", false},
		"os.Exit, repeatable":         {"repeatable", "exit", true},
		"out of memory, repeatable":   {"repeatable", "gobble", true},
		"os.Exit, verifiable":         {"verifiable", "exit", true},
		"os.Exit, in transactions":    {"in_tx", "exit", true},
		"os.Exit, many at once":       {"many", "exit", false},
		"out of memory, many at once": {"many", "gobble", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.onlyFull {
				onlyFull(t)
			}
			dsn, pool := database(t)
			w := newWorld(t)
			told := service{Database: dsn, World: w, Attempts: attempts, Types: []string{c.jobType}, Memory: 256 << 20,
				Lease: time.Second, Visibility: 2500 * time.Millisecond} // so a message comes again when its holder has been declared dead
			ws := numbers(1, 20)
			ws[6].How = c.how
			l := load{}
			l.send(t, pool, c.jobType, ws...)
			deaths := told.keepAlive(t, 2)
			poison := id{c.jobType, "7"}
			awaitSettled(t, pool)
			if got, want := standing(t, pool, poison), "failed 4"; got != want {
				t.Errorf("the poison item is %s, want %s", got, want)
			}
			for _, p := range deaths() {
				code := p.cmd.ProcessState.ExitCode()
				if c.how == "exit" && code != 3 || c.how == "gobble" && !slices.ContainsFunc(outOfMemory, p.said) {
					t.Errorf("a process died of something else than the poison, with exit code %d", code)
				}
			}
			// One death may be that of a first delivery, which needs no claim and counts no attempt.
			if n := len(deaths()); n < attempts || n > attempts+1 {
				t.Errorf("%d processes died, want %d or one more", n, attempts)
			}
			if text := ask[string](t, pool, `SELECT error FROM oncemore.claim`); text == "" {
				t.Error("the list does not say why it failed")
			}
			delete(l, poison)
			checkEnd(t, pool, w, l)
		})
	}
}
