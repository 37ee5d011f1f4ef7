//go:build linux

package chaos_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// shiftEnv says how wrong a process's wall clock is, as a duration.
const shiftEnv = "ONCEMORE_WALL_SHIFT"

// shiftedBinary is this test binary with a package time whose wall clock can be wrong. Go
// reads the clock without the C library, so nothing outside the program could bend it. The
// monotonic clock stays right, as with a machine whose date was set badly.
//
// It takes most of a minute to build, since everything depends on package time.
var shiftedBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", folderPrefix, os.Getpid())) // removed with the process
	if err != nil {
		return "", err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	raw, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		return "", err
	}
	const reads = "\tsec, nsec, mono := runtimeNow()\n"
	head, body, found := strings.Cut(string(raw), "\nfunc Now() Time {\n"+reads)
	if !found {
		return "", os.ErrNotExist
	}
	patched, shift := filepath.Join(dir, "time.go"), filepath.Join(dir, "shift.go")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(source, "time.go"): patched, filepath.Join(source, "shift.go"): shift}})
	if err != nil {
		return "", err
	}
	for file, text := range map[string]string{
		patched: head + "\nfunc Now() Time {\n" + reads + "\tsec += wallShift\n" + body,
		shift: `package time

import "syscall"

var wallShift = func() int64 {
	s, _ := syscall.Getenv("` + shiftEnv + `")
	d, _ := ParseDuration(s)
	return int64(d / Second)
}()
`,
		filepath.Join(dir, "overlay.json"): string(overlay),
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	binary := filepath.Join(dir, "chaos.test")
	cmd := exec.Command("go", "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, ".")
	cmd.Stderr = os.Stderr
	return binary, cmd.Run()
})

// Two workers whose clocks are two hours apart, and neither is right. One of them is killed
// at its work. Leases, delays, the settling of an effect, the horizon of a key and every
// time that is written down go by the server's clock.
func TestI9TimeIsTheDatabasesWhenTheWorkersClocksAreWrong(t *testing.T) {
	t.Parallel()
	onlyFull(t)
	binary, err := shiftedBinary()
	if err != nil {
		t.Fatalf("building a binary whose clock can be wrong: %v", err)
	}
	for name, shift := range map[string]struct{ victim, survivor time.Duration }{
		"the survivor is late":  {time.Hour, -time.Hour},
		"the survivor is early": {-time.Hour, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const lease, retry, settle = 3 * time.Second, 2 * time.Second, 4 * time.Second
			dsn, pool := database(t)
			w := newWorld(t)
			told := service{Database: dsn, World: w, Lease: lease, Visibility: 5 * time.Second, Retry: retry, Settle: settle, Timeout: 20 * time.Second, Slots: 8}
			began := ask[time.Time](t, pool, `SELECT clock_timestamp()`)
			start := func(shift time.Duration) *process {
				p := told.startBinary(t, binary, shiftEnv+"="+shift.String())
				await(t, "its clock is as wrong as it shall be", func() bool {
					es := w.events(t, func(e event) bool { return e.Verb == "started" && e.Pid == p.pid() })
					if len(es) == 0 {
						return false
					}
					at, err := time.Parse(time.RFC3339, es[0].Said)
					if off := time.Until(at) - shift; err != nil || off.Abs() > 30*time.Second {
						t.Fatalf("its clock says %s, want one that is off by %s", es[0].Said, shift)
					}
					return true
				})
				return p
			}

			// What the victim is killed at.
			held := load{}
			for _, jobType := range []string{"keyed", "verifiable", "repeatable"} {
				held.send(t, pool, jobType, work{N: 1000, How: "hold"})
			}
			victim := start(shift.victim)
			await(t, "it is at work", func() bool { return len(w.events(t, func(e event) bool { return e.Verb == "held" })) == len(held) })
			survivor := start(shift.survivor)
			awaitRow(t, pool, "both have a lease", `SELECT count(*) = 2 FROM oncemore.worker WHERE dead_at IS NULL`)
			for range 20 {
				if !ask[bool](t, pool, `SELECT bool_and(expires > clock_timestamp() - interval '1 s' AND expires <= clock_timestamp() + $1::interval AND dead_at IS NULL) FROM oncemore.worker`, lease) {
					t.Fatal("a lease does not go by the server's clock")
				}
				time.Sleep(lease / 10) // sampling over two leases
			}
			victim.kill()
			awaitRow(t, pool, "it is declared dead", `SELECT coalesce(bool_or(cause = 'lapsed' AND dead_at > expires), false) FROM oncemore.worker WHERE name LIKE '%/' || $1::int`, victim.pid())
			dead := ask[time.Time](t, pool, `SELECT max(dead_at) FROM oncemore.worker WHERE name LIKE '%/' || $1::int`, victim.pid())

			// And plain work, with failures.
			l := load{}
			l.sendMixed(t, pool, 40, allTypes...)
			for _, jobType := range []string{"repeatable", "keyed", "in_tx", "many"} {
				l.send(t, pool, jobType, work{N: 500, How: "fail"})
			}
			awaitSettled(t, pool)

			within := func(what string, d, least, most time.Duration) {
				if d < least || d > most {
					t.Errorf("%s: %s, want between %s and %s", what, d, least, most)
				}
			}
			done := func(thing id) time.Time {
				return ask[time.Time](t, pool, `SELECT l.completed_at FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type WHERE t.name = $1 AND l.entity = $2`, thing.Type, thing.Entity)
			}
			slack := patience // a busy machine; an hour is far
			within("the death of the victim is seen", dead.Sub(began), 0, 2*patience)
			within("the settling of verifiable work, from the death of its worker", done(id{"verifiable", "1000"}).Sub(dead), settle, settle+slack)
			within("keyed work inside its horizon, from the death of its worker", done(id{"keyed", "1000"}).Sub(dead), 0, slack)
			for _, jobType := range []string{"repeatable", "keyed", "in_tx", "many"} {
				failed := ask[time.Time](t, pool, `SELECT a.at FROM oncemore.attempt a JOIN oncemore.job_type t ON t.id = a.job_type WHERE t.name = $1 AND a.entity = '500' AND a.outcome = 'retrying'`, jobType)
				within("the retry of "+jobType, done(id{jobType, "500"}).Sub(failed), retry-100*time.Millisecond, retry+slack)
			}
			if n := ask[int](t, pool, `
SELECT (SELECT count(*) FROM oncemore.ledger WHERE completed_at NOT BETWEEN $1 AND clock_timestamp())
     + (SELECT count(*) FROM oncemore.attempt WHERE at NOT BETWEEN $1 AND clock_timestamp())
     + (SELECT count(*) FROM oncemore.worker WHERE started_at NOT BETWEEN $1 AND clock_timestamp() OR dead_at NOT BETWEEN $1 AND clock_timestamp())`, began); n != 0 {
				t.Errorf("%d times that were written down are not the server's", n)
			}
			if survivor.said("another worker declared this one dead") {
				t.Error("the survivor did not know how long its lease was")
			}
			survivor.stop(t)
			for thing := range held {
				l[thing] = held[thing]
			}
			checkEnd(t, pool, w, l)
		})
		t.Run(name+", past the horizon of a key", func(t *testing.T) {
			t.Parallel()
			dsn, pool := database(t)
			w := newWorld(t)
			told := service{Database: dsn, World: w, Types: []string{"keyed"}, Visibility: 2 * time.Second, Timeout: 20 * time.Second, Horizon: 20*time.Second + 200*time.Millisecond}
			l := load{}
			l.send(t, pool, "keyed", work{N: 1, How: "hold"})
			victim := told.startBinary(t, binary, shiftEnv+"="+shift.victim.String())
			await(t, "it is at work", func() bool { return len(w.events(t, func(e event) bool { return e.Verb == "held" })) == 1 })
			victim.kill()
			survivor := told.startBinary(t, binary, shiftEnv+"="+shift.survivor.String())
			await(t, "the key is not trusted", func() bool { return standing(t, pool, id{"keyed", "1"}) == "in_doubt 1" })
			resolveDoubts(t, pool, w)
			awaitSettled(t, pool)
			survivor.stop(t)
			checkEnd(t, pool, w, l)
		})
	}
}
