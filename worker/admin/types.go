package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A Type is a job type as the database knows it, and as the application does where its
// set is at hand.
type Type struct {
	// What Decide asks of a type. Without the application's set the effect is what the worker
	// that registered it last declared, the timeout is the default one, and the code's version
	// and whether there is a done-check are not known: 0 and false. So is that of requests, of
	// which no set knows.
	ledger.Type
	Names    []string // it was ever registered by, the one that was used last first
	Declared string   // the effect class, in words
	Query    string   // the source that names its entities, where it is SQL; empty: not known
	Params   []any    // of Query
	Set      bool     // the application's set has it

	keyType string      // what effect keys are made of; empty: not known
	source  jobs.Source // in Go, or in SQL as Query
	decode  func(entity string, raw []byte) (jobs.Input, error)
}

// Internal tells whether the type is not the application's, but carries the framework's own
// work, such as the visits of re-runs.
func (t *Type) Internal() bool { return strings.HasPrefix(t.Name, jobs.ReservedPrefix) }

// EffectKey is what a provider was given for the entity in an epoch; empty where it
// cannot be known, because the type was renamed and the application's set is not at hand.
func (t *Type) EffectKey(entity string, epoch int64) string {
	if t.keyType == "" {
		return ""
	}
	return ledger.EffectKey(t.keyType, entity, epoch)
}

// A renamed type has several names; the one that a worker used last is shown.
const typesSQL = `
SELECT id, array_agg(name::text ORDER BY seen_at DESC, name), (array_agg(effect ORDER BY seen_at DESC, name))[1],
       coalesce((array_agg(source ORDER BY seen_at DESC, name))[1], '')
FROM oncemore.job_type GROUP BY id`

// Types returns all job types that workers have registered, by name. set may be nil.
func Types(ctx context.Context, tx pgx.Tx, set *jobs.Set) ([]*Type, error) {
	rows, err := tx.Query(ctx, typesSQL)
	if err != nil {
		return nil, fmt.Errorf("list the job types: %w", err)
	}
	types, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Type, error) {
		t := &Type{}
		return t, row.Scan(&t.ID, &t.Names, &t.Declared, &t.Query)
	})
	if err != nil {
		return nil, fmt.Errorf("list the job types: %w", err)
	}
	for _, t := range types {
		t.complete(set)
	}
	slices.SortFunc(types, func(a, b *Type) int { return strings.Compare(a.Name, b.Name) })
	return types, nil
}

// unregistered are the types of the application's set that are none of types, by no name of
// theirs. The database has nothing of them, so all that their sources name is missing: their
// ID, 0, is nobody's.
func unregistered(set *jobs.Set, types []*Type) (out []*Type) {
	if set == nil {
		return nil
	}
	there := map[string]bool{}
	for _, t := range types {
		for _, name := range t.Names { // one of them may be an alias by now
			if e, ok := set.Lookup(name); ok {
				there[e.Type] = true
			}
		}
	}
	for _, name := range set.Types() {
		if e, _ := set.Lookup(name); !there[name] {
			t := &Type{Names: []string{name}, Declared: e.Effect.String()}
			t.complete(set)
			out = append(out, t)
		}
	}
	return out
}

// complete adds what the application's set knows of t, or what is usual.
func (t *Type) complete(set *jobs.Set) {
	t.Name, t.Timeout = t.Names[0], defaultTimeout
	t.Declared, t.Requests = strings.CutSuffix(t.Declared, ledger.ByRequest)
	t.Effect = parseEffect(t.Declared)
	if len(t.Names) == 1 {
		t.keyType = t.Name
	}
	if set == nil {
		return
	}
	if e, ok := set.Lookup(t.Name); ok {
		t.Set = true
		t.Type = ledger.Type{ID: t.ID, Name: t.Name, Effect: e.Effect, Version: e.Version, Timeout: e.Timeout, Checked: e.Done != nil}
		t.source, t.keyType, t.decode = e.Source, e.KeyType, e.Decode
		t.Query, t.Params = e.Source.Query()
	}
}

// carriable refuses to send work of t by a message where nobody would ever take it.
func (t *Type) carriable() error {
	if t.Requests {
		return fmt.Errorf("%s: %w", t.Name, ErrRequests)
	}
	return nil
}

// ErrRequests says that the work of a type comes as requests.
var ErrRequests = errors.New("it comes as requests, which no worker takes: only their clients can send them again, and each is looked at anew when it comes")

// defaultTimeout is that of jobs.Policy.
const defaultTimeout = time.Minute

// parseEffect reads what Effect.String wrote; what is none is the zero Effect.
func parseEffect(s string) ledger.Effect {
	for _, e := range []ledger.Effect{ledger.InTransaction, ledger.Repeatable, ledger.Once} {
		if s == e.String() {
			return e
		}
	}
	name, rest, _ := strings.Cut(s, "(")
	d, err := time.ParseDuration(strings.TrimSuffix(rest, ")"))
	switch {
	case err != nil:
	case name == "Keyed":
		return ledger.Keyed(d)
	case name == "Verifiable":
		return ledger.Verifiable(d)
	}
	return ledger.Effect{}
}

// ErrNoType says that no worker has registered a job type of this name.
var ErrNoType = errors.New("no worker has registered this job type in this database")

// FindType finds a type by any of its names. The error wraps [ErrNoType] and names those
// that there are.
func FindType(ctx context.Context, tx pgx.Tx, set *jobs.Set, name string) (*Type, error) {
	types, err := Types(ctx, tx, set)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, t := range types {
		if slices.Contains(t.Names, name) {
			return t, nil
		}
		if !t.Internal() {
			names = append(names, t.Name)
		}
	}
	if names == nil {
		return nil, fmt.Errorf("%q: %w, nor any other", name, ErrNoType)
	}
	return nil, fmt.Errorf("%q: %w; there are: %s", name, ErrNoType, strings.Join(names, ", "))
}

// wanted is the types that a list is of: the one that is named, or all.
func wanted(ctx context.Context, tx pgx.Tx, set *jobs.Set, name string) (map[int32]*Type, error) {
	if name != "" {
		t, err := FindType(ctx, tx, set, name)
		if err != nil {
			return nil, err
		}
		return map[int32]*Type{t.ID: t}, nil
	}
	types, err := Types(ctx, tx, set)
	out := make(map[int32]*Type, len(types))
	for _, t := range types {
		out[t.ID] = t
	}
	return out, err
}

func idsOf(types map[int32]*Type) []int32 {
	out := make([]int32, 0, len(types))
	for id := range types {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// nameOf is how a type is shown; its number where no row has it.
func nameOf(types map[int32]*Type, id int32) string {
	if t := types[id]; t != nil {
		return t.Name
	}
	return fmt.Sprintf("#%d", id)
}
