package invitations

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/invitations/smtpd"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// A town is a database with events, a mail server, and a worker between them.
type town struct {
	db    *pgxpool.Pool
	queue *pgqueue.Queue
	mail  *smtpd.Server
}

func newTown(t *testing.T, events, invitees int) *town {
	t.Helper()
	return newSlowTown(t, events, invitees, 10*time.Millisecond)
}

// newSlowTown is one whose mail server takes so long until it can tell of a mail.
func newSlowTown(t *testing.T, events, invitees int, settle time.Duration) *town {
	t.Helper()
	server, mailer := startServer(t)
	mailer.Settle = settle
	w := &town{db: pgtest.Pool(t), mail: server}
	w.queue = pgqueue.New(w.db, "")
	if err := Seed(t.Context(), w.db, events, invitees); err != nil {
		t.Fatal(err)
	}
	set, err := jobs.NewSet(Jobs(w.db, mailer)...)
	if err != nil {
		t.Fatal(err)
	}
	wk, err := worker.New(t.Context(), w.db, set, worker.Config{
		Queues: map[string]queue.Queue{"": w.queue}, Recheck: 50 * time.Millisecond, Lease: 3 * time.Second,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- wk.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// call enqueues the invitations of the events numbered from 1 to n.
func (w *town) call(t *testing.T, n int64) {
	t.Helper()
	for id := int64(1); id <= n; id++ {
		if err := jobs.Enqueue(t.Context(), w.queue, SendEventEmails{EventID: id}); err != nil {
			t.Fatal(err)
		}
	}
}

// await returns when the query says true.
func (w *town) await(t *testing.T, what, query string, args ...any) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var yes bool
		if err := w.db.QueryRow(t.Context(), query, args...).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		if yes {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("after 30 s: not yet: %s", what)
		}
	}
}

const (
	allRunsEnded  = `SELECT count(*) = $1 AND bool_and(complete) FROM oncemore.run`
	nothingIsOpen = `SELECT NOT EXISTS (SELECT FROM oncemore.claim) AND NOT EXISTS (SELECT FROM oncemore.message)`
)

func (w *town) mustHaveDeliveredOnce(t *testing.T, want int) {
	t.Helper()
	st := w.mail.Stats()
	if st.Distinct != want || st.Accepted != want || st.SameMailTwice != 0 {
		t.Errorf("the mail server has %d invitations, took mail %d times, has %d twice; want %d, each once", st.Distinct, st.Accepted, st.SameMailTwice, want)
	}
	var facts int
	if err := w.db.QueryRow(t.Context(), `SELECT count(*) FROM oncemore.ledger`).Scan(&facts); err != nil {
		t.Fatal(err)
	}
	if facts != want {
		t.Errorf("the ledger has %d facts, want %d", facts, want)
	}
}

func TestEveryInviteeGetsOneInvitationHoweverOftenItIsCalled(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2, 90)
	single := SendEventEmailToInvitee{EventID: 1, InviteeID: 2}
	if err := jobs.Enqueue(t.Context(), w.queue, single, single); err != nil {
		t.Fatal(err)
	}
	w.call(t, 2)
	w.call(t, 2)
	w.await(t, "the runs are complete", `SELECT count(*) >= 2 AND bool_and(complete) FROM oncemore.run`)
	w.await(t, "nothing is open", nothingIsOpen)
	w.mustHaveDeliveredOnce(t, 90)

	var runs, newest, skipped int64
	if err := w.db.QueryRow(t.Context(), `SELECT count(*), max(id) FROM oncemore.run`).Scan(&runs, &newest); err != nil {
		t.Fatal(err)
	}
	w.call(t, 2)
	w.await(t, "the runs of the second call are complete", allRunsEnded, runs+2)
	if err := w.db.QueryRow(t.Context(), `SELECT sum(skipped) FROM oncemore.run WHERE id > $1`, newest).Scan(&skipped); err != nil {
		t.Fatal(err)
	}
	if skipped != 90 {
		t.Errorf("called again, %d invitations were skipped as done, want 90", skipped)
	}
	w.mustHaveDeliveredOnce(t, 90)
}

// The connection was cut after the server took the mail, or before: the sender cannot
// know which, and the server can be asked.
func TestAnInvitationThatWasPerhapsSentIsLookedForBeforeItIsSentAgain(t *testing.T) {
	t.Parallel()
	for _, mode := range []smtpd.Mode{smtpd.Drop, smtpd.Lose} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			w := newTown(t, 1, 20)
			if err := w.mail.Set(smtpd.Behaviour{Mode: mode, N: 5}); err != nil {
				t.Fatal(err)
			}
			w.call(t, 1)
			w.await(t, "the run is complete", allRunsEnded, 1)
			w.mustHaveDeliveredOnce(t, 20)
		})
	}
}

func TestWhileNobodyCanTellAnInvitationIsInDoubtAndLaterItIsResolved(t *testing.T) {
	t.Parallel()
	for _, mode := range []smtpd.Mode{smtpd.Drop, smtpd.Lose} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			w := newSlowTown(t, 1, 3, 5*time.Second) // so that none is asked about before all three have ended
			if err := w.mail.Set(smtpd.Behaviour{Mode: mode}); err != nil {
				t.Fatal(err)
			}
			w.call(t, 1)
			w.await(t, "three attempts ended without an answer", `SELECT count(*) >= 3 FROM oncemore.claim WHERE first_claimed_at IS NOT NULL AND owner IS NULL`)
			if err := w.mail.Set(smtpd.Behaviour{Mode: smtpd.Down, Blind: true}); err != nil {
				t.Fatal(err)
			}
			w.await(t, "one is in doubt", `SELECT count(*) >= 1 FROM oncemore.claim WHERE trouble = 'in_doubt'`)
			if err := w.mail.Set(smtpd.Behaviour{}); err != nil {
				t.Fatal(err)
			}
			w.await(t, "all invitations are recorded", `SELECT count(*) = 3 FROM oncemore.ledger`)
			w.await(t, "nothing is open", `SELECT NOT EXISTS (SELECT FROM oncemore.claim WHERE job_type <> (SELECT id FROM oncemore.job_type WHERE name = 'send_event_emails'))`)
			w.mustHaveDeliveredOnce(t, 3)
		})
	}
}

func TestAnOutageOfTheMailServerLosesNoInvitation(t *testing.T) {
	t.Parallel()
	w := newTown(t, 1, 30)
	if err := w.mail.Set(smtpd.Behaviour{Mode: smtpd.Down}); err != nil {
		t.Fatal(err)
	}
	w.call(t, 1)
	w.await(t, "all wait for another attempt", `SELECT count(*) = 30 FROM oncemore.claim WHERE trouble = 'retrying' AND first_claimed_at IS NULL AND attempts > 0 AND run > 0 AND entity LIKE '1/%'`)
	if err := w.mail.Set(smtpd.Behaviour{}); err != nil {
		t.Fatal(err)
	}
	w.await(t, "the run is complete", allRunsEnded, 1)
	w.mustHaveDeliveredOnce(t, 30)
}

func TestAnEventThatIsNotFinalizedInvitesNobody(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2, 10)
	if _, err := w.db.Exec(t.Context(), `UPDATE invitations.event SET finalized = false WHERE id = 2`); err != nil {
		t.Fatal(err)
	}
	if err := jobs.Enqueue(t.Context(), w.queue, SendEventEmailToInvitee{EventID: 2, InviteeID: 1}); err != nil {
		t.Fatal(err)
	}
	w.call(t, 2)
	w.await(t, "the runs are complete", allRunsEnded, 2)
	w.await(t, "nothing is open", nothingIsOpen)
	w.mustHaveDeliveredOnce(t, 5)
}

func TestAnAddressThatTheServerRefusesForEverIsTriedOnce(t *testing.T) {
	t.Parallel()
	w := newTown(t, 1, 1)
	if err := w.mail.Set(smtpd.Behaviour{Mode: smtpd.Fail, At: smtpd.AtRcpt, Code: 550}); err != nil {
		t.Fatal(err)
	}
	w.call(t, 1)
	w.await(t, "it is listed as failed after one attempt", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'failed' AND attempts = 1 AND first_claimed_at IS NULL)`)
	w.mustHaveDeliveredOnce(t, 0)
}
