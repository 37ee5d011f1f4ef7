package plan_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

type doc struct {
	ID       int   `json:"id"`
	Revision int64 `json:"source_version"`
}

func (doc) JobType() string        { return "doc" }
func (d doc) Entity() string       { return fmt.Sprint(d.ID) }
func (d doc) SourceVersion() int64 { return d.Revision }

// Three ways to read a source: beside a stretch of the ledger, entity by entity, and in
// the application. Each must find what Decide says of every entity by itself, and what is
// open besides.
func TestASurveyFindsWhatDecideSaysHoweverItReads(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("ONCEMORE_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("ONCEMORE_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pool := pgtest.Pool(t)
	kind := ledger.Type{Name: "doc", Effect: ledger.Repeatable, Version: 2}
	if err := ledger.New(pool).Register(t.Context(), &kind); err != nil {
		t.Fatal(err)
	}
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	const named = 3000
	exec(`CREATE TABLE docs (id int, revision bigint)`)
	exec(`INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('dead', now(), now() - interval '1 hour'), ('alive', now() + interval '1 hour', NULL)`)
	for id := range named {
		exec(`INSERT INTO docs VALUES ($1, $2)`, id, 1+random.Int64N(3))
	}
	for id := range named + 500 { // and facts and claims of what nobody names
		if random.IntN(100) < 80 {
			exec(`INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity, version, source_version) VALUES (0, $1, 1, 'r', $2, $3, $4)`,
				kind.ID, fmt.Sprint(id), 1+random.IntN(2), 1+random.Int64N(3))
		}
		if random.IntN(100) < 15 {
			state := [][]any{{nil, "retrying"}, {nil, "failed"}, {nil, "in_doubt"}, {1, nil}, {2, nil}}[random.IntN(5)]
			exec(`INSERT INTO oncemore.claim (fence, owner, trouble, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
VALUES (nextval('oncemore.fence'), $1, $2, 0, 0, $3, 0, $4, 1, $5, '{}')`, state[0], state[1], 1+random.Int64N(3), kind.ID, fmt.Sprint(id))
		}
	}
	exec(`ANALYZE`)

	// By itself: every entity, looked at.
	var wants []ledger.Want
	rows, err := pool.Query(t.Context(), `SELECT id::text, revision FROM docs`)
	if err != nil {
		t.Fatal(err)
	}
	var entity string
	var revision int64
	if _, err := pgx.ForEachRow(rows, []any{&entity, &revision}, func() error {
		wants = append(wants, ledger.Want{Entity: entity, SourceVersion: revision})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	standings, err := ledger.New(pool).Look(t.Context(), &kind, wants)
	if err != nil {
		t.Fatal(err)
	}
	all := []ledger.Reason{ledger.Missing, ledger.Retry, ledger.StaleSource, ledger.StaleVersion, ledger.Failed, ledger.InDoubt}
	want, seen := map[string]ledger.Reason{}, map[ledger.Reason]int64{}
	count := func(entity string, r ledger.Reason) {
		seen[r]++
		if slices.Contains(all, r) {
			want[entity] = r
		}
	}
	met := map[string]bool{} // whose claim has a say in what is said of it
	for i, st := range standings {
		count(wants[i].Entity, st.Reason)
		met[wants[i].Entity] = st.Open != nil && st.Reason != ledger.Done
	}
	// And what is open besides: of what nobody names, or asking for more than the source does.
	var besides []ledger.Want
	if rows, err = pool.Query(t.Context(), `SELECT entity, source_version FROM oncemore.claim`); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.ForEachRow(rows, []any{&entity, &revision}, func() error {
		if !met[entity] {
			besides = append(besides, ledger.Want{Entity: entity, SourceVersion: revision})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if standings, err = ledger.New(pool).Look(t.Context(), &kind, besides); err != nil {
		t.Fatal(err)
	}
	for i, st := range standings {
		if st.Reason != ledger.Done {
			count(besides[i].Entity, st.Reason)
		}
	}
	if len(seen) < 8 {
		t.Fatalf("the scene has only %v", seen)
	}

	// A source in Go names its entities in the order of the ledger's key, as bytes.
	inOrder := slices.SortedFunc(slices.Values(wants), func(a, b ledger.Want) int { return cmp.Compare(a.Entity, b.Entity) })
	inGo := jobs.Seq(func(_ context.Context, after string) iter.Seq2[doc, error] {
		return func(yield func(doc, error) bool) {
			for _, w := range inOrder {
				if id, err := strconv.Atoi(w.Entity); w.Entity > after && !yield(doc{id, w.SourceVersion}, err) {
					return
				}
			}
		}
	})
	inSQL := func(s *plan.Survey, tx pgx.Tx) error {
		return errors.Join(s.FromSource(t.Context(), tx), s.FromOpen(t.Context(), tx))
	}
	for name, way := range map[string]struct {
		source jobs.Source
		survey func(*plan.Survey, pgx.Tx) error
	}{
		"beside the facts": {jobs.SQL[doc](`SELECT id::text AS entity, id, revision AS source_version FROM docs`), inSQL},
		"one by one":       {jobs.SQL[doc](`SELECT id::text AS entity, id, revision AS source_version FROM docs ORDER BY id`), inSQL},
		// In many chunks: a claim that lies where two of them meet must be met once.
		"in the application": {inGo, func(s *plan.Survey, tx pgx.Tx) error {
			for after, more := "", true; more; {
				c, err := s.Read(t.Context(), after, 7)
				if err != nil {
					return err
				}
				if err := s.FromChunk(t.Context(), tx, c); err != nil {
					return err
				}
				after, more = c.After, c.More
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string]ledger.Reason{}
			s := plan.Survey{Subject: plan.Subject{Type: kind, Source: way.source}, Selection: plan.Selection{Reasons: all},
				Each: func(items []plan.Item) error {
					for _, it := range items {
						if r, twice := got[it.Entity]; twice {
							t.Errorf("%s is picked twice, as %s and as %s", it.Entity, r, it.Reason)
						}
						got[it.Entity] = it.Reason
					}
					return nil
				}}
			err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error { return way.survey(&s, tx) })
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got, want) {
				t.Errorf("it picked %d entities, want %d", len(got), len(want))
				for e, r := range want {
					if got[e] != r {
						t.Fatalf("%s: %q, want %q", e, got[e], r)
					}
				}
			}
			if !maps.Equal(s.Seen, seen) || s.Named != named || s.Items != int64(len(want)) {
				t.Errorf("it counts %+v, want %v", s.Tally, seen)
			}
		})
	}
}

func TestSelectionsThatAskForTheSameHaveOneKey(t *testing.T) {
	one := plan.Selection{Reasons: []ledger.Reason{ledger.Failed, ledger.Missing}, Entities: []string{"b", "a", "a"}}
	other := plan.Selection{Reasons: []ledger.Reason{ledger.Missing, ledger.Failed, ledger.Failed}, Entities: []string{"a", "b"}}
	if one.Key() != other.Key() {
		t.Error("their order tells them apart")
	}
	if (plan.Selection{}).Key() != (plan.Selection{Reasons: plan.Usual}).Key() {
		t.Error("the usual reasons are not the usual ones when they are named")
	}
	now := time.Now()
	for _, s := range []plan.Selection{{Force: true}, {Prefix: "a"}, {Class: "a"}, {Limit: 1}, {Since: now}, {Until: now}, {Entities: []string{"a"}}, {Reasons: one.Reasons}} {
		if s.Key() == (plan.Selection{}).Key() {
			t.Errorf("%v has the key of everything", s)
		}
	}
}

func TestASelectionThatContradictsItselfIsRefused(t *testing.T) {
	now := time.Now()
	for _, s := range []plan.Selection{
		{Reasons: []ledger.Reason{ledger.Done}}, {Reasons: []ledger.Reason{"lost"}}, {Limit: -1},
		{Force: true, Reasons: []ledger.Reason{ledger.Missing}}, {Force: true, Class: "x"}, {Since: now, Until: now},
	} {
		if s.Check() == nil {
			t.Errorf("%+v is accepted", s)
		}
	}
}
