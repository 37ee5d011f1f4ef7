package ledger_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A shop has orders, whose every change is noted. (moved has no unique key: what is there
// twice can be counted.)
const shopSchema = `
CREATE TABLE orders (id text PRIMARY KEY, state text NOT NULL, version bigint NOT NULL DEFAULT 1);
CREATE TABLE moved (id text, was text, is_now text, version bigint);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO moved VALUES (OLD.id, OLD.state, NEW.state, OLD.version); RETURN NEW; END $$;
CREATE TRIGGER note AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION note()`

func newShop(t *testing.T) *world {
	t.Parallel()
	w := newWorld(t, ledger.InTransaction)
	w.exec(shopSchema)
	return w
}

// order makes one in a state.
func (w *world) order(id, state string, version int64) {
	w.Helper()
	w.exec(`INSERT INTO orders VALUES ($1, $2, $3)`, id, state, version)
}

// from is the transition of an order, without a version.
func (w *world) from(id, from, to string) ledger.Transition {
	return ledger.Transition{Type: w.kind, Entity: id, From: from, To: to}
}

func at(tr ledger.Transition, version int64) ledger.Transition { tr.Version = version; return tr }

// applyIn is what an app writes.
func applyIn(ctx context.Context, tx pgx.Tx, tr ledger.Transition) (bool, error) {
	return tr.Apply(ctx, tx,
		func() (pgconn.CommandTag, error) {
			return tx.Exec(ctx, `/* order: move */ UPDATE orders SET state = $3, version = version + 1 WHERE id = $1 AND state = $2 AND ($4 = 0 OR version = $4)`,
				tr.Entity, tr.From, tr.To, tr.Version)
		},
		func() pgx.Row { return tx.QueryRow(ctx, `SELECT state, version FROM orders WHERE id = $1`, tr.Entity) })
}

func (w *world) apply(tr ledger.Transition) (applied bool, err error) {
	w.Helper()
	err = pgx.BeginFunc(w.Context(), w.pool, func(tx pgx.Tx) error { applied, err = applyIn(w.Context(), tx, tr); return err })
	return applied, err
}

func (w *world) applies(tr ledger.Transition, want bool) {
	w.Helper()
	applied, err := w.apply(tr)
	w.ok(err)
	w.want(tr.Key()+" applied", applied, want)
}

func (w *world) state(id string) string {
	w.Helper()
	return value[string](w, `SELECT state || ' ' || version FROM orders WHERE id = $1`, id)
}

func (w *world) moves(id string) int {
	w.Helper()
	return value[int](w, `SELECT count(*) FROM moved WHERE id = $1`, id)
}

func TestATransitionIsAppliedOnceAndARepeatChangesNothing(t *testing.T) {
	w := newShop(t)
	w.order("7", "cart", 1)
	order := w.from("7", "cart", "ordered")
	w.applies(order, true)
	w.applies(order, false)
	w.want("the order", w.state("7"), "ordered 2")
	w.want("moves", w.moves("7"), 1)
	f := w.look(ledger.Want{Entity: "7/cart/ordered"})
	w.want("the fact", f.Reason, ledger.Done)
	w.want("its evidence", f.Fact.Evidence, ledger.SameTx)
}

func TestTheSameTargetFromAnotherStateIsOtherWork(t *testing.T) {
	w := newShop(t)
	w.order("7", "draft", 1)
	w.applies(w.from("7", "draft", "ordered"), true)
	_, err := w.apply(w.from("7", "cart", "ordered"))
	c, is := errors.AsType[*ledger.ConflictError](err)
	if !is {
		t.Fatalf("cart → ordered after draft → ordered: %v", err)
	}
	w.want("the conflict", *c, ledger.ConflictError{Entity: "7", From: "cart", To: "ordered", FoundState: "ordered", FoundVersion: 2})
	w.want("facts", w.facts(), 1)
}

func TestAVersionThatIsNotTheExpectedOneIsATypedConflict(t *testing.T) {
	w := newShop(t)
	w.order("7", "cart", 4)
	_, err := w.apply(at(w.from("7", "cart", "ordered"), 3))
	c, is := errors.AsType[*ledger.ConflictError](err)
	if !is || c.ExpectedVersion != 3 || c.FoundVersion != 4 || c.FoundState != "cart" {
		t.Fatalf("got %v", err)
	}
	w.want("in words", err.Error(), `take "7" to "ordered": expected it "cart" at version 3, found it "cart" at version 4`)
	w.want("facts", w.facts(), 0)

	_, err = w.apply(at(w.from("none", "cart", "ordered"), 3))
	if !strings.HasSuffix(err.Error(), `expected it "cart" at version 3, there is no such row`) {
		t.Errorf("of an order that is not there: %v", err)
	}
}

func TestATransitionThatIsNotWholeIsRefused(t *testing.T) {
	w := newShop(t)
	for what, tr := range map[string]ledger.Transition{
		"negative":           at(w.from("7", "cart", "ordered"), -1),
		"must not be empty":  w.from("7", "", "ordered"),
		"not registered":     {Entity: "7", From: "cart", To: "ordered"},
		"allowed are 1 to":   w.from(strings.Repeat("x", 600), "cart", "ordered"),
		"NUL byte":           w.from("7\x00", "cart", "ordered"),
		"not valid UTF-8":    w.from("7", "cart", "ord\xffered"),
		"see Ledger.Registe": {Type: &ledger.Type{Name: "new"}, Entity: "7", From: "cart", To: "ordered"},
	} {
		if _, err := w.apply(tr); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want it to say %q", err, what)
		}
	}
}

// The transaction that found a conflict has changed nothing, and can go on.
func TestAfterAConflictTheTransactionGoesOn(t *testing.T) {
	w := newShop(t)
	w.order("7", "paid", 1)
	w.in(func(tx pgx.Tx) {
		_, err := applyIn(t.Context(), tx, w.from("7", "cart", "ordered"))
		if _, is := errors.AsType[*ledger.ConflictError](err); !is {
			t.Fatal(err)
		}
		applied, err := applyIn(t.Context(), tx, w.from("7", "paid", "shipped"))
		w.ok(err)
		w.want("the next one applied", applied, true)
	})
	w.want("the order", w.state("7"), "shipped 2")
	w.want("facts", w.facts(), 1)
}

// A→B→A→B. With versions each is its own wish, and each late repeat is known as one.
func TestAMachineWithLoopsNeedsVersions(t *testing.T) {
	w := newShop(t)
	w.order("7", "on", 1)
	off, on := w.from("7", "on", "off"), w.from("7", "off", "on")
	for v := int64(1); v < 9; v += 2 {
		w.applies(at(off, v), true)
		w.applies(at(off, v), false)
		w.applies(at(on, v+1), true)
	}
	for v := int64(1); v < 9; v += 2 {
		w.applies(at(off, v), false)
		w.applies(at(on, v+1), false)
	}
	w.want("the switch", w.state("7"), "on 9")
	w.want("facts", w.facts(), 2)
	w.want("facts of before", value[int](w, `SELECT count(*) FROM oncemore.ledger_history`), 6)

	// That a later round was made does not say that this one was: it is a conflict, and no repeat.
	w.exec(`INSERT INTO orders VALUES ('8', 'on', 1)`)
	w.applies(at(w.from("8", "on", "broken"), 1), true)
	w.applies(at(w.from("8", "broken", "on"), 2), true)
	w.applies(at(w.from("8", "on", "off"), 3), true)
	if _, err := w.apply(at(w.from("8", "on", "off"), 1)); err == nil {
		t.Error("on → off at version 1, which never was, is taken for a repeat of that at version 3")
	}

	// Without a version a transition is done once in the entity's life.
	w.order("9", "on", 1)
	w.applies(w.from("9", "on", "off"), true)
	w.applies(w.from("9", "off", "on"), true)
	w.applies(w.from("9", "on", "off"), false)
	w.want("the switch", w.state("9"), "on 3")
}

func TestAnUpdateThatDoesNotNameOneRowIsRefused(t *testing.T) {
	w := newShop(t)
	w.order("7", "cart", 1)
	w.order("8", "cart", 1)
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		_, err := w.from("7", "cart", "ordered").Apply(t.Context(), tx, func() (pgconn.CommandTag, error) {
			return tx.Exec(t.Context(), `UPDATE orders SET state = 'ordered' WHERE state = 'cart'`)
		}, nil)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "changed 2 rows") {
		t.Errorf("got %v", err)
	}
	w.want("moves", w.moves("7")+w.moves("8"), 0)
}

// The worker inserts the fact of a DoTx job first. Its body makes the update.
func TestWhereTheTransactionHasTheFactTheUpdateAloneIsMade(t *testing.T) {
	w := newShop(t)
	w.order("7", "cart", 1)
	tr := at(w.from("7", "cart", "ordered"), 1)
	hold := func(tx pgx.Tx) {
		mine, err := ledger.Hold(t.Context(), tx, w.kind, 1e9, []*ledger.Outcome{{Want: ledger.Want{Entity: tr.Key(), SourceVersion: 1}, State: ledger.Completed, Attempts: 1, Evidence: ledger.SameTx}})
		w.ok(err)
		w.want("held", mine[0], true)
	}
	w.in(func(tx pgx.Tx) {
		hold(tx)
		applied, err := applyIn(t.Context(), tx, tr)
		w.ok(err)
		w.want("applied", applied, true)
	})
	w.want("the order", w.state("7"), "ordered 2")
	w.applies(tr, false)

	w.order("8", "paid", 3)
	tr = at(w.from("8", "cart", "ordered"), 1)
	tx := w.begin()
	hold(tx)
	_, err := applyIn(t.Context(), tx, tr)
	if _, is := errors.AsType[*ledger.ConflictError](err); !is {
		t.Errorf("the row is elsewhere: %v", err)
	}
}

// Whatever befalls the statements of a transition, and its commit: who tries again until
// it has an answer finds it done once.
func TestATransitionWhoseWritesAreLostOrReportedLostIsDoneOnce(t *testing.T) {
	w := newShop(t)
	proxy, err := pgproxy.Start(w.pool.Config().ConnString())
	w.ok(err)
	defer proxy.Close()
	through, err := pgxpool.New(t.Context(), proxy.DSN())
	w.ok(err)
	defer through.Close()
	for _, target := range []string{"order: move", "transition: record", "commit"} {
		for name, fault := range map[string]pgproxy.Fault{"lost": pgproxy.Lost, "reported lost": pgproxy.ReportedLost} {
			t.Run(target+" "+name, func(t *testing.T) {
				w := &world{T: t, pool: w.pool, Ledger: w.Ledger, kind: w.kind}
				id := t.Name()
				w.order(id, "cart", 1)
				tries, applied := 0, false
				var struck atomic.Int32 // connections that end and begin may ask at once
				proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
					if strings.Contains(b.String(), target) && (target != "commit" || len(b.Tx) > 0) && struck.CompareAndSwap(0, 1) {
						return fault
					}
					return pgproxy.Pass
				})
				for ; tries < 5; tries++ {
					err := pgx.BeginFunc(t.Context(), through, func(tx pgx.Tx) (err error) {
						applied, err = applyIn(t.Context(), tx, at(w.from(id, "cart", "ordered"), 1))
						return err
					})
					if err == nil {
						break
					}
				}
				proxy.Decide(func(*pgproxy.Batch) pgproxy.Fault { return pgproxy.Pass })
				w.want("struck", struck.Load(), int32(1))
				w.want("tries before the last", tries, 1)
				w.want("applied by the second", applied, !(target == "commit" && name == "reported lost"))
				w.want("the order", w.state(id), "ordered 2")
				w.want("moves", w.moves(id), 1)
				w.want("facts", value[int](w, `SELECT count(*) FROM oncemore.ledger WHERE entity = $1`, w.from(id, "cart", "ordered").Key()), 1)
			})
		}
	}
}
