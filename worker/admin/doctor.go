package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Check is one thing that was looked at for the database's fitness.
type Check struct {
	Name  string `json:"name"` // one of [CheckNames]; what is wrong in several ways has several checks
	State Health `json:"state"`
	Found string `json:"found"`        // in words
	Do    string `json:"do,omitempty"` // what is to be done; empty: nothing
}

// Health is how well a check went.
type Health string

const (
	OK     Health = "ok"
	Warn   Health = "warn"   // it works, and will not for ever, or not well
	Bad    Health = "bad"    // work stands still or is lost, or can be
	Unseen Health = "unseen" // it could not be looked at; also, of many checks, nothing could be
)

// Limits are how much is too much. Zero fields have the defaults that they name.
type Limits struct {
	OldTransaction time.Duration // of an open transaction, prepared or not; 0: 5 min. 12 times that is bad
	OldMessage     time.Duration // that nobody takes; 0: 5 min. 12 times that is bad
	SilentWorker   time.Duration // that nobody declares dead; 0: 1 min
	Lag            time.Duration // of a replica; 0: 1 min
	DeadRows       int64         // of a table that churns, and more than twice the living; 0: 100,000. 10 times that is bad
	XIDAge         int64         // transactions since a table was frozen; 0: half as much again as autovacuum allows. A billion is bad
}

func (l *Limits) fill() {
	for of, usual := range map[*time.Duration]time.Duration{
		&l.OldTransaction: 5 * time.Minute, &l.OldMessage: 5 * time.Minute, &l.SilentWorker: time.Minute, &l.Lag: time.Minute,
	} {
		if *of == 0 {
			*of = usual
		}
	}
	if l.DeadRows == 0 {
		l.DeadRows = 100_000
	}
}

// worse is far beyond a limit.
const worse = 12

// aged says how bad an age is.
func aged(age, limit time.Duration) Health {
	switch {
	case age > worse*limit:
		return Bad
	case age > limit:
		return Warn
	}
	return OK
}

// A patient is what the examinations look at.
type patient struct {
	pool   *pgxpool.Pool
	limits Limits
}

// An examination makes one or more checks of one name. An error of it is a check too.
type examination struct {
	name string
	make func(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error)
}

var examinations = []examination{
	{"server", checkServer},
	{"schema", checkSchema},
	{"indexes", checkIndexes},
	{"settings", checkSettings},
	{"connections", checkConnections},
	{"autovacuum", checkAutovacuum},
	{"dead-rows", checkDeadRows},
	{"wraparound", checkWraparound},
	{"plans", checkPlans},
	{"transactions", checkTransactions},
	{"prepared", checkPrepared},
	{"replication", checkReplication},
	{"workers", checkWorkers},
	{"leases", checkLeases},
	{"lives", checkLives},
	{"owners", checkOwners},
	{"waiting", checkWaiting},
	{"held", checkHeld},
	{"schedules", checkSchedules},
}

// CheckNames are the names of all checks, in the order in which they are made.
func CheckNames() []string {
	out := make([]string, len(examinations))
	for i, e := range examinations {
		out[i] = e.name
	}
	return out
}

// Diagnose looks whether the database is fit for its work: its schema, its settings, how
// its tables, plans and sessions are, and whether workers, queues and schedules move. It only
// reads, each statement within five seconds, and leaves out the checks named in skip. What
// its role may not see is said to be unseen. An error is that of ctx, or of a database that
// does not answer any more: then the checks are those that were made until then.
func Diagnose(ctx context.Context, pool *pgxpool.Pool, l Limits, skip ...string) ([]Check, error) {
	l.fill()
	p := &patient{pool: pool, limits: l}
	var out []Check
	for _, e := range examinations {
		if slices.Contains(skip, e.name) {
			continue
		}
		var checks []Check
		err := Read(ctx, pool, readTime, func(tx pgx.Tx) (err error) {
			checks, err = e.make(ctx, p, tx)
			return err
		})
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		for _, c := range checks {
			if err != nil && c.State == OK {
				continue // of what was not seen whole
			}
			c.Name = e.name
			out = append(out, c)
		}
		if err == nil {
			continue
		}
		c := failed(e.name, err)
		if c.State != Unseen && !answers(ctx, pool) {
			return out, fmt.Errorf("check %s: %w", e.name, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// answers tells whether the database is still there.
func answers(ctx context.Context, pool *pgxpool.Pool) bool {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return pool.Ping(ctx) == nil
}

// failed says why a check could not be made. That its role may not see something is no
// fault of the database, and a schema that is not there is one that another check names.
// Anything else is a warning: what could not be looked at is not well.
func failed(name string, err error) Check {
	c := Check{Name: name, State: Unseen, Found: firstLine(err.Error())}
	switch sqlState(err) {
	case "42501":
		c.Do = "run it as a role that may, or read it by hand"
	case "3F000", "42P01", "42703":
		c.Do = "bring the schema up: 'migrate up'"
	case "57014":
		c.State, c.Found, c.Do = Warn, "it took longer than "+readTime.String(), "look again; if it stays, see what the server is busy with, or waits for: pg_stat_activity"
	default:
		c.State, c.Do = Warn, "look again; if it stays, see the server's log"
	}
	return c
}

// Worst is the worst state among checks. What is unseen is no worse than what is well, but
// where nothing was seen at all, that is all there is to say.
func Worst(checks []Check) Health {
	worst := Unseen
	for _, c := range checks {
		switch {
		case c.State == Bad:
			return Bad
		case c.State == Warn, c.State == OK && worst == Unseen:
			worst = c.State
		}
	}
	return worst
}

func ok(format string, args ...any) []Check {
	return []Check{{State: OK, Found: fmt.Sprintf(format, args...)}}
}

// orOK is what was found, or that all is well.
func orOK(found []Check, format string, args ...any) []Check {
	if len(found) == 0 {
		return ok(format, args...)
	}
	return found
}

// listed joins the first few of some things.
func listed(what []string) string {
	const most = 5
	if len(what) > most {
		return strings.Join(what[:most], ", ") + fmt.Sprintf(" and %d more", len(what)-most)
	}
	return strings.Join(what, ", ")
}
