package admin_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (s *scene) tell(jobType, entity string) *admin.Story {
	s.Helper()
	story, err := admin.Tell(s.Context(), s.pool, nil, jobType, entity)
	s.ok(err)
	if len(story.Unseen) > 0 {
		s.Errorf("unseen: %q", story.Unseen)
	}
	return story
}

// send puts a message for an entity into the default queue.
func (s *scene) send(m queue.Message, entity string) {
	s.Helper()
	m.Items = append(m.Items, queue.Item{Entity: entity, Args: []byte(`{"for":"` + entity + `"}`)})
	s.ok(pgqueue.New(s.pool, "").Send(s.Context(), m))
}

func kinds(story *admin.Story) string {
	var out []string
	for _, e := range story.Events {
		out = append(out, e.Kind)
	}
	return strings.Join(out, " ")
}

// An entity fails, is retried, is in doubt, is resolved, is done late by two workers, is
// forced, and waits for its next attempt.
func TestAStoryTellsAllThatHappenedInOrder(t *testing.T) {
	s := newScene(t)
	anna, bert := s.worker("anna"), s.worker("bert")
	pays := s.kind("payment", ledger.Once, `SELECT n::text AS entity FROM generate_series(1, 9) n`)
	s.exec(`INSERT INTO oncemore.audit (entities, actor, action, job_type, sample, reason, detail) VALUES
		(1, 'zoe', 'retry', 'payment', '{7}', 'the gateway is back', ''), (500, 'zoe', 'retry', 'payment', '{1,2}', 'all of them', ''),
		(1, 'zoe', 'retry', 'payment', '{8}', 'not ours', ''), (1, 'zoe', 'retry', 'other', '{7}', 'not ours', '')`)
	s.fail(pays, anna, ledger.Unclear, "net.OpError", "connection reset\nby peer", "7")
	s.ok(pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
		st, err := ledger.LookIn(t.Context(), tx, pays, []ledger.Want{{Entity: "7"}})
		s.ok(err)
		return ledger.Resolve(t.Context(), tx, pays, st[0].Open, ledger.Verdict{Evidence: ledger.ByOperator, By: "zoe", Why: "is not on the statement"})
	}))
	late := s.claim(pays, anna, "7")
	s.dies(anna)
	st, err := s.Look(t.Context(), pays, []ledger.Want{{Entity: "7"}})
	s.ok(err)
	s.ok(pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
		return ledger.Resolve(t.Context(), tx, pays, st[0].Open, ledger.Verdict{Done: true, Evidence: ledger.ByOperator, By: "zoe", Why: "it is"})
	}))
	s.settle(pays, anna, late[0], ledger.Outcome{Want: ledger.Want{Entity: "7"}, State: ledger.Completed})
	// Forced: the old fact is archived by the new one.
	forced := s.claimWants(pays, bert, []ledger.Want{{Entity: "7", Epoch: 5}})
	s.settle(pays, bert, forced[0], ledger.Outcome{Want: ledger.Want{Entity: "7"}, State: ledger.Completed})
	again := s.claimWants(pays, bert, []ledger.Want{{Entity: "7", Epoch: 6}})
	s.settle(pays, bert, again[0], ledger.Outcome{Want: ledger.Want{Entity: "7"}, State: ledger.ToRetry, Delay: time.Hour, Absent: true, Class: "x", Error: "closed"})
	s.send(queue.Message{Type: "payment", Epoch: 6, Delay: time.Hour, Items: []queue.Item{{Entity: "6", Args: []byte(`{}`)}}}, "7")
	s.exec(`INSERT INTO oncemore.parked (reason, type, entity, body, error, digest, times) VALUES ('conflict', 'payment', '7', '{"other":1}', 'other arguments', 'd', 2)`)

	story := s.tell("payment", "7")
	// Of the message the time to come counts, so it stands last.
	want := "audit audit attempt attempt archived attempt attempt fact attempt claim parked message"
	if got := kinds(story); got != want {
		t.Errorf("the events are\n%s\nwant\n%s", got, want)
	}
	for i := 1; i < len(story.Events); i++ {
		if story.Events[i].At.Before(story.Events[i-1].At) {
			t.Errorf("out of order: %+v before %+v", story.Events[i-1], story.Events[i])
		}
	}
	said := ""
	for _, e := range story.Events {
		said += e.Text + "\n"
	}
	for _, want := range []string{
		"retry by zoe: the gateway is back", "maybe among them: retry of 500 entities by zoe: all of them",
		"attempt 1: in doubt, worker ", "anna: connection reset\nby peer", "not done, says zoe: is not on the statement",
		"done: resolved by an operator", "replaced 2", "disputed", "done: reported by the job, epoch 5",
		"retrying", "open: retrying, epoch 6", "parked as 1: conflict, 2 times until", "delayed until", "with 1 other entities, epoch 6",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("nobody says %q in\n%s", want, said)
		}
	}
	if strings.Contains(said, "not ours") {
		t.Errorf("acts on others are told:\n%s", said)
	}
	if story.Place != "open" || story.Reason != ledger.Waiting || !strings.Contains(story.Next, "brings it in 5") {
		t.Errorf("%s %s %s", story.Place, story.Reason, story.Next)
	}
	if story.Named == nil || !*story.Named || story.EffectKey != ledger.EffectKey("payment", "7", 6) || story.Effect != "Once" {
		t.Errorf("%+v", story)
	}
	for _, e := range story.Events {
		switch e.Kind {
		case "claim":
			if e.Claim == nil || e.Claim.Args != `{"secret":"7"}` {
				t.Errorf("%+v", e.Claim)
			}
		case "message":
			if e.Message == nil || e.Message.Args != `{"for":"7"}` || e.Message.State != "delayed" || e.Message.Entities != 2 {
				t.Errorf("%+v", e.Message)
			}
		}
	}
}

func TestAStorySaysWhatHappensNext(t *testing.T) {
	s := newScene(t)
	anna, bert, carl := s.worker("anna"), s.worker("bert"), s.worker("carl")
	mail := s.kind("mail", ledger.Repeatable, `SELECT e AS entity, 3 AS source_version FROM unnest('{named,stale,carried}'::text[]) e`)
	pays := s.kind("pay", ledger.Once)
	seen := s.kind("seen", ledger.Verifiable(time.Hour))
	s.complete(mail, bert, "stale")
	s.complete(pays, bert, "done", "forced")
	s.send(queue.Message{Type: "pay", Epoch: 9}, "forced")
	s.send(queue.Message{Type: "mail"}, "carried")
	s.send(queue.Message{Type: "mail", Delay: 100 * time.Minute}, "later")
	s.send(queue.Message{Type: "mail"}, "overdue")
	s.send(queue.Message{Type: "mail"}, "held")
	s.send(queue.Message{Type: "mail"}, "lapsed")
	s.exec(`UPDATE oncemore.message SET lock = 0, visible_at = clock_timestamp() - interval '1 minute' WHERE entities = '{overdue}'`)
	s.exec(`UPDATE oncemore.message SET lock = 7, visible_at = clock_timestamp() + interval '1 minute' WHERE entities = '{held}'`)
	s.exec(`UPDATE oncemore.message SET lock = 8, visible_at = clock_timestamp() - interval '1 minute' WHERE entities = '{lapsed}'`)
	s.fail(mail, bert, ledger.GaveUp, "x", "no", "failed")
	s.fail(pays, bert, ledger.Unclear, "x", "no", "doubt")
	s.fail(mail, bert, ledger.ToRetry, "x", "no", "retry", "waits")
	s.exec(`UPDATE oncemore.claim SET not_before = NULL WHERE entity = 'retry'`)
	s.claim(mail, bert, "running")
	s.claim(mail, carl, "silent")
	s.claim(mail, anna, "stranded")
	s.claim(pays, anna, "perhaps")
	s.claim(seen, anna, "settles")
	s.dies(anna)
	s.exec(`UPDATE oncemore.worker SET expires = clock_timestamp() - interval '1 minute' WHERE name = 'carl'`)

	for _, c := range []struct {
		jobType, entity, place string
		reason                 ledger.Reason
		next                   string
	}{
		{"pay", "done", "done", ledger.Done, "Nothing more: it is done"},
		{"pay", "forced", "done", ledger.Forced, "asked for once more: message 1 brings it to the next worker"},
		{"pay", "never", "missing", ledger.Missing, "nobody has called it"},
		{"mail", "never", "missing", ledger.Missing, "its source does not name it"},
		{"mail", "named", "missing", ledger.Missing, "its source names it, and no message in this database carries it. Call it"},
		{"mail", "carried", "missing", ledger.Missing, "message 2 brings it to the next worker"},
		{"mail", "later", "missing", ledger.Missing, "message 3 brings it in 9"},
		{"mail", "overdue", "missing", ledger.Missing, "message 4 is due"},
		{"mail", "held", "missing", ledger.Missing, "a worker has message 5 in its hands"},
		{"mail", "lapsed", "missing", ledger.Missing, "message 6 was taken by a worker that is silent"},
		{"mail", "stale", "done", ledger.StaleSource, "done from an older version of its source"},
		{"mail", "failed", "open", ledger.Failed, "Mend the cause, then 'retry' it."},
		{"mail", "retry", "open", ledger.Retry, "no message in this database carries it: if none comes from another queue, 'retry' sends one"},
		{"mail", "waits", "open", ledger.Waiting, "It waits for another attempt, and no message"},
		{"mail", "running", "open", ledger.Ongoing, "Wait: its worker has it."},
		{"mail", "silent", "open", ledger.Ongoing, "Its worker is silent"},
		{"mail", "stranded", "open", ledger.Retry, "'retry' sends one"},
		{"pay", "doubt", "open", ledger.InDoubt, "Find out whether it happened"},
		{"pay", "perhaps", "open", ledger.InDoubt, "Its next message puts it in doubt"},
		{"seen", "settles", "open", ledger.Waiting, "given time to show"},
	} {
		story := s.tell(c.jobType, c.entity)
		if story.Place != c.place || story.Reason != c.reason || !strings.Contains(story.Next, c.next) {
			t.Errorf("%s %s is %s, %s: %s\nwant %s, %s: …%s…", c.jobType, c.entity, story.Place, story.Reason, story.Next, c.place, c.reason, c.next)
		}
		if strings.Contains(story.Next, "No worker is alive") {
			t.Errorf("bert lives: %s", story.Next)
		}
	}
	s.dies(bert)
	if story := s.tell("mail", "carried"); !strings.HasSuffix(story.Next, "No worker is alive now.") {
		t.Errorf("without a worker: %s", story.Next)
	}
}

// A job returned something, a request was answered, and what a third returned has expired.
func TestAStoryHasWhatIsKeptBesideAFact(t *testing.T) {
	s := newScene(t)
	anna := s.worker("anna")
	quotes := s.kind("quote", ledger.Once)
	keep := func(entity, result string) {
		s.settle(quotes, anna, s.claim(quotes, anna, entity)[0], ledger.Outcome{Want: ledger.Want{Entity: entity}, State: ledger.Completed, Result: []byte(result)})
	}
	keep("1", `{"price":17}`)
	keep("2", `"a door"`)
	keep("3", `3`)
	s.exec(`UPDATE oncemore.result SET expires_at = stored_at WHERE entity = '3'`)
	s.exec(`DELETE FROM oncemore.result WHERE entity = '2'`)
	s.exec(`INSERT INTO oncemore.response (job_type, entity, epoch, status, headers, body, expires_at) VALUES ($1, '2', 0, 201, '{}', '{"id":2}', now() + '1h')`, quotes.ID)

	for entity, told := range map[string]string{"1": `result: {"price":17}, kept until `, "2": "answered with status 201 and 8 bytes, kept until ", "3": "result: 3, expired at "} {
		story := s.tell("quote", entity)
		kind := map[bool]string{true: "answer", false: "result"}[entity == "2"]
		if kinds(story) != "fact "+kind {
			t.Fatalf("%s: %s", entity, kinds(story))
		}
		if e := story.Events[1]; !strings.HasPrefix(e.Text, told) || e.Kept.Bytes == 0 {
			t.Errorf("%s: %s %+v", entity, e.Text, e.Kept)
		}
	}
}

func TestTheStoryOfAFanOutHasItsRuns(t *testing.T) {
	s := newScene(t)
	s.kind("mailing", ledger.InTransaction)
	s.exec(`INSERT INTO oncemore.run (parent_type, parent_entity, job_type, started_at, ended_at, complete, items, skipped)
		VALUES (1, '3', 1, now() - interval '2 hours', now() - interval '1 hour', true, 1200, 7), (1, '3', 1, now(), NULL, false, 5, 1), (1, '4', 1, now(), NULL, false, 5, 1)`)
	story := s.tell("mailing", "3")
	if kinds(story) != "run run run" || !strings.Contains(story.Events[1].Text, "run 1 of 1,200 entities, 7 more skipped as done: complete") || !strings.Contains(story.Events[2].Text, "began") {
		t.Errorf("%+v", story.Events)
	}
}

func TestAStoryThatCannotSeeAllSaysSo(t *testing.T) {
	s := newScene(t)
	s.kind("mail", ledger.Repeatable, `SELECT 1/0 AS entity`)
	s.exec(`DROP TABLE oncemore.audit`)
	story, err := admin.Tell(t.Context(), s.pool, nil, "mail", "a")
	s.ok(err)
	unseen := strings.Join(story.Unseen, "\n")
	if !strings.Contains(unseen, "the audit: ") || !strings.Contains(unseen, "the source: ") || len(story.Unseen) != 2 || story.Named != nil || story.Next == "" {
		t.Errorf("%+v", story)
	}
	if _, err := admin.Tell(t.Context(), s.pool, nil, "nothing", "a"); !errors.Is(err, admin.ErrNoType) {
		t.Errorf("%v", err)
	}
}

// A type was renamed: its messages may name it by any of its names.
func TestAStoryKnowsAllNamesOfAType(t *testing.T) {
	s := newScene(t)
	s.kind("old", ledger.Repeatable)
	s.ok(s.Declare(t.Context(), &ledger.Type{Name: "new", Effect: ledger.Repeatable}, "", "old"))
	s.send(queue.Message{Type: "old"}, "a")
	for _, name := range []string{"old", "new"} {
		if story := s.tell(name, "a"); story.Type != "new" || kinds(story) != "message" || story.EffectKey != "" {
			t.Errorf("by the name %s: %+v", name, story)
		}
	}
}

// A pause holds messages back for a century, which is nobody's business.
func TestWhatAPauseHoldsBackIsToldToWaitForItsRun(t *testing.T) {
	s := newScene(t)
	s.worker("anna")
	s.kind("mail", ledger.Repeatable)
	s.send(queue.Message{Type: "mail", Run: 3}, "ready")
	s.send(queue.Message{Type: "mail", Run: 3, Delay: time.Hour}, "later")
	s.send(queue.Message{Type: "mail", Run: 3}, "twice")
	s.send(queue.Message{Type: "mail", Delay: 100 * time.Minute}, "twice")
	b := &pgx.Batch{}
	pgqueue.Hold(b, 3)
	s.ok(s.pool.SendBatch(t.Context(), b).Close())
	for entity, next := range map[string]string{
		"ready": "It is not done: message 1 is held back, since its run is paused: 'runs resume 3' lets it go on.",
		"later": "It is not done: message 2 is held back, since its run is paused: 'runs resume 3' lets it go on.",
		"twice": "message 4 brings it in 9",
	} {
		story := s.tell("mail", entity)
		if !strings.Contains(story.Next, next) {
			t.Errorf("%s: %s\nwant %s", entity, story.Next, next)
		}
		e := story.Events[0]
		if e.At.After(s.now().Add(2*time.Hour)) || entity != "twice" && (e.Message.State != "paused" || !e.Message.VisibleAt.Equal(e.At) || !strings.Contains(e.Text, `in queue "": paused, run 3`)) {
			t.Errorf("%s: %s %s %+v", entity, e.At, e.Text, e.Message)
		}
	}
}

// What had failed and was called again by a run is not to be retried by hand: that would be a second
// message, past what the run heeds.
func TestWhatARunHasCalledAgainIsToldToWaitForIt(t *testing.T) {
	s := newScene(t)
	s.worker("anna")
	s.kind("mail", ledger.Repeatable)
	s.exec(`INSERT INTO oncemore.claim (fence, trouble, claimed_at, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), 'failed', now(), now(), 0, 0, 0, 3, t.id, 0, 'a', '{}' FROM oncemore.job_type t WHERE t.name = 'mail'`)
	s.send(queue.Message{Type: "mail", Run: 3}, "a")
	b := &pgx.Batch{}
	pgqueue.Hold(b, 3)
	s.ok(s.pool.SendBatch(t.Context(), b).Close())
	if story := s.tell("mail", "a"); !strings.Contains(story.Next, "since its run is paused: 'runs resume 3'") || strings.Contains(story.Next, "retry") {
		t.Error(story.Next)
	}
	list := s.opens(failed, admin.Filter{}, admin.Page{Limit: 10})
	if len(list.Rows) != 1 || list.Rows[0].Next != "run 3 has called it again; if that has ended, 'retry' it" {
		t.Errorf("%+v", list)
	}
}
