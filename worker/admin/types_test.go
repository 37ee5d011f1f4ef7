package admin_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// An app of the next release names a type by its new name, while the workers of this one go on.
func TestATypeIsWhatItsWorkersSayAlsoWhereAnAppKnowsItByANewerName(t *testing.T) {
	s := newScene(t)
	letters := `SELECT n::text AS entity FROM generate_series(1, 3) n`
	s.kind("letter", ledger.Once, letters)
	s.ok(s.Register(t.Context(), &ledger.Type{Name: "mail", Effect: ledger.InTransaction}, "letter"))
	find := func() *admin.Type {
		return look(s, func(tx pgx.Tx) (*admin.Type, error) { return admin.FindType(t.Context(), tx, nil, "mail") })
	}
	if ty := find(); ty.Name != "letter" || ty.Declared != "Once" || ty.Query != letters || len(ty.Names) != 2 {
		t.Errorf("%+v", ty)
	}
	s.ok(s.Declare(t.Context(), &ledger.Type{Name: "mail", Effect: ledger.Repeatable}, "", "letter"))
	if ty := find(); ty.Name != "mail" || ty.Declared != "Repeatable" || ty.Query != "" {
		t.Errorf("after the new workers: %+v", ty)
	}
}

func TestOfRequestsNothingIsSentByWhoeverRetriesOrResolvesThem(t *testing.T) {
	s := newScene(t)
	orders := &ledger.Type{Name: "POST /orders", Effect: ledger.Once, Timeout: time.Minute, Requests: true}
	s.ok(s.Declare(t.Context(), orders, ""))
	op := &admin.Operator{Pool: s.pool, Actor: "anna"}
	w := s.worker("server")
	s.claim(orders, w, "stranded")
	s.fail(orders, w, ledger.Unclear, "http", "answered 504", "doubted")
	s.dies(w)

	selection := admin.Selection{Type: "POST /orders"}
	if _, err := op.Retryable(t.Context(), selection); !errors.Is(err, admin.ErrRequests) {
		t.Errorf("%v", err)
	}
	stranded := s.opens(stranded, admin.Filter{}, admin.Page{Limit: 10}).Rows
	if len(stranded) != 1 || stranded[0].Next != "when its client sends it again it is put in doubt; who knows whether it happened says it with 'doubt resolve'" {
		t.Fatalf("%+v", stranded)
	}
	shown := &admin.Shown{Type: "POST /orders", Entries: []admin.Entry{{Entity: "stranded", Fence: stranded[0].Fence}}}
	if _, err := op.Retry(t.Context(), shown, ""); !errors.Is(err, admin.ErrRequests) {
		t.Errorf("%v", err)
	}
	selection.Entities = []string{"doubted"}
	shown, err := op.InDoubt(t.Context(), selection)
	if err != nil || len(shown.Entries) != 1 || !shown.Requests {
		t.Fatalf("%+v, %v", shown, err)
	}
	if r, err := op.Resolve(t.Context(), shown, false, "is on no statement"); err != nil || r.Changed != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	var sent int
	s.ok(s.pool.QueryRow(t.Context(), `SELECT count(*) FROM oncemore.message`).Scan(&sent))
	if sent != 0 {
		t.Errorf("%d messages were sent", sent)
	}
	if story := s.tell("POST /orders", "doubted"); story.Next != "It is done when its client sends it again; no message carries it." || story.Effect != "Once" {
		t.Errorf("%+v", story)
	}
	if story := s.tell("POST /orders", "other"); story.Next != "It is not done: no request of this key has come, or what it did was undone, or its transaction goes on." {
		t.Errorf("%+v", story)
	}

	// One that an earlier release sent is told of as what it is.
	s.send(queue.Message{Type: "POST /orders"}, "doubted")
	s.exec(`UPDATE oncemore.message SET visible_at = clock_timestamp() - interval '2 hours'`)
	if c := says(t, examine(t, s.pool, "waiting", admin.Limits{}), admin.Bad, "1 messages of POST /orders"); c.Do != "it comes as requests, which no worker takes: delete these messages of it, each client sends its request again" {
		t.Errorf("%+v", c)
	}
}

// A server died over a payment, and its client never came again: nothing puts that in doubt. Who has
// looked at the statement may say what is on it all the same, and a server that lives is not taken
// for one that died.
func TestARequestThatADeadServerLeftIsResolvedWithoutItsClient(t *testing.T) {
	for done, want := range map[bool]ledger.Reason{true: ledger.Done, false: ledger.Retry} {
		t.Run(string(want), func(t *testing.T) {
			s := newScene(t)
			orders := &ledger.Type{Name: "POST /orders", Effect: ledger.Once, Timeout: time.Minute, Requests: true}
			s.ok(s.Declare(t.Context(), orders, ""))
			op := &admin.Operator{Pool: s.pool, Actor: "anna"}
			dead, alive := s.worker("server"), s.worker("another")
			s.claim(orders, dead, "left")
			s.claim(orders, alive, "ongoing")
			s.dies(dead)
			shown, err := op.InDoubt(t.Context(), admin.Selection{Type: "POST /orders"})
			if err != nil || len(shown.Entries) != 0 {
				t.Errorf("nobody has named it: %+v, %v", shown, err)
			}
			shown, err = op.InDoubt(t.Context(), admin.Selection{Type: "POST /orders", Entities: []string{"left", "ongoing"}})
			if err != nil || len(shown.Entries) != 1 || shown.Entries[0].Entity != "left" || shown.Entries[0].State != "stranded" {
				t.Fatalf("%+v, %v", shown, err)
			}
			if r, err := op.Resolve(t.Context(), shown, done, "looked at the statement"); err != nil || r.Changed != 1 {
				t.Fatalf("%+v, %v", r, err)
			}
			if story := s.tell("POST /orders", "left"); story.Reason != want {
				t.Errorf("done %t: %+v", done, story)
			}
			if story := s.tell("POST /orders", "ongoing"); story.Reason != ledger.Ongoing {
				t.Errorf("the other: %+v", story)
			}
		})
	}
}

// What only an app has named has no worker that would take it.
func TestATypeThatNoWorkerHasDeclaredIsNotTakenForOneThatWorkersKnow(t *testing.T) {
	s := newScene(t)
	s.ok(s.Register(t.Context(), &ledger.Type{Name: "mail", Effect: ledger.InTransaction}))
	s.send(queue.Message{Type: "mail"}, "a")
	s.exec(`UPDATE oncemore.message SET visible_at = clock_timestamp() - interval '2 hours'`)
	if c := says(t, examine(t, s.pool, "waiting", admin.Limits{}), admin.Bad, "1 messages of mail"); c.Do != "no worker has ever known this type: deploy one that does, or mend the producer" {
		t.Errorf("%+v", c)
	}
}
