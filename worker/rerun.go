package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// A re-run is a run of what a selection picks of one job type. It is carried, visited and
// ended as a fan-out is: a message of a job type of its own, one beside each that can be
// re-run, brings the visits, under a claim. Its entity is what the selection asks for, so
// that whoever asks for the same while it goes on joins it.
//
// Where a fan-out plans and sends at once, a re-run first seals its plan whole, and then
// sends it bit by bit, as fast as its rate, its canary and the database's health let it:
// pump.go.
const rerunPrefix = jobs.ReservedPrefix + "rerun."

// An Order asks for a re-run.
type Order struct {
	Type           string // of the jobs, by any of its names; required
	plan.Selection        // of their entities

	By     string // who asks
	Reason string // and why, in their words
	Origin string // and from where: a command on a host, a schedule

	Rate        float64       // items a second at most: see [CheckRate]; 0: as fast as the database bears it
	Canary      int64         // so many first, and the rest only if few enough of them failed; 0: none, as where the plan has no more
	CanaryShare float64       // of them may fail, from 0 to 1; 0: one failure pauses the run
	Delay       time.Duration // before it begins

	Schedule string    // that asks; "": none
	Tick     time.Time // of the schedule
}

// An Opened tells what came of an [Order].
type Opened struct {
	Run     int64 // its id
	Joined  bool  // the same was asked for before, and goes on: that run is it
	Planned bool  // the run that was joined has its plan already, and is being worked
}

// ErrCancelling is the error of [OpenRerun] while a run of the same selection is about to end.
var ErrCancelling = errors.New("is being cancelled: ask again when it has ended")

// OpenRerun asks for a re-run in tx, which is to be READ COMMITTED: it is there when tx
// commits, and a worker that has the job plans and works it, however often workers die
// meanwhile. While a run of the same selection goes on, that one is returned instead, and
// nothing else of o counts; where that one is being cancelled, and would do nothing of what is
// asked for, the error wraps [ErrCancelling]. to is the Postgres queue that carries retries ([pgqueue.Queue],
// "" in most apps).
func OpenRerun(ctx context.Context, tx pgx.Tx, to *pgqueue.Queue, o Order) (Opened, error) {
	if err := o.check(); err != nil {
		return Opened{}, err
	}
	selection, err := json.Marshal(o.Selection)
	if err != nil {
		return Opened{}, fmt.Errorf("encode the selection: %w", err)
	}
	fail := func(err error) (Opened, error) {
		return Opened{}, fmt.Errorf("open a re-run of %s: %w", o.Type, err)
	}
	var name string
	var child, carrier *int32
	if err := tx.QueryRow(ctx, rerunTypesSQL, o.Type, rerunPrefix).Scan(&child, &name, &carrier); errors.Is(err, pgx.ErrNoRows) || err == nil && carrier == nil {
		return fail(errors.New("no worker that has this job, and can re-run it, was ever started on this database"))
	} else if err != nil {
		return fail(err)
	}
	key := o.Selection.Key()
	var tick *time.Time
	if o.Schedule != "" {
		tick = &o.Tick
	}
	message := queue.Message{Type: rerunPrefix + name, Items: []queue.Item{{Entity: key, Args: json.RawMessage(`{}`)}}, Priority: rerunPriority, Delay: o.Delay}
	for {
		opened := Opened{}
		err := tx.QueryRow(ctx, openRerunSQL, *carrier, key, *child, string(selection), o.By, o.Reason, o.Origin, o.Force, o.Schedule, tick).Scan(&opened.Run)
		if errors.Is(err, pgx.ErrNoRows) {
			opened.Joined = true
			var stranded, cancelled bool
			err = tx.QueryRow(ctx, joinRerunSQL, *carrier, key).Scan(&opened.Run, &opened.Planned, &stranded, &cancelled)
			if errors.Is(err, pgx.ErrNoRows) {
				continue // it has ended between the two statements
			}
			if err == nil && cancelled {
				err = fmt.Errorf("run %d of the same %w", opened.Run, ErrCancelling)
			}
			if err == nil && stranded {
				err = to.Tx(tx).Send(ctx, message)
			}
			if err == nil {
				return opened, nil
			}
		}
		if err != nil {
			return fail(err)
		}
		b := &pgx.Batch{}
		b.Queue(controlSQL, opened.Run, o.Rate, o.Canary, o.CanaryShare)
		tell(b, opened.Run, "opened", o.Selection.String())
		to.SendBatch(b, message)
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return fail(err)
		}
		return opened, nil
	}
}

// rerunPriority has visits come before the work that they send.
const rerunPriority = 100

func (o *Order) check() error {
	switch {
	case o.Type == "":
		return errors.New("a re-run needs a job type")
	case CheckRate(o.Rate) != nil:
		return CheckRate(o.Rate)
	case o.Canary < 0 || !(o.CanaryShare >= 0 && o.CanaryShare <= 1):
		return errors.New("a canary is a number of entities, and a share from 0 to 1 of them that may fail")
	case o.Delay < 0:
		return errors.New("the delay of a re-run must not be negative")
	}
	return o.Selection.Check()
}

const (
	// By any name of the type, the one that was used last.
	rerunTypesSQL = `
SELECT t.id, t.name, c.id
FROM oncemore.job_type o JOIN oncemore.job_type t ON t.id = o.id
LEFT JOIN oncemore.job_type c ON c.name = $2 || t.name
WHERE o.name = $1
ORDER BY c.id IS NULL, t.seen_at DESC LIMIT 1`

	openRerunSQL = `
/* run: open a re-run */
INSERT INTO oncemore.run (parent_type, parent_entity, job_type, selection, asked_by, reason, origin, epoch, schedule, tick)
VALUES ($1, $2, $3, $4, $5, $6, $7, CASE WHEN $8 THEN nextval('oncemore.epoch') ELSE 0 END, nullif($9, ''), $10)
ON CONFLICT (parent_type, parent_entity) WHERE ended_at IS NULL DO NOTHING
RETURNING id`

	// Its visits may have failed for good: then nothing carries it any more, and asking for it
	// again is what has it go on.
	joinRerunSQL = `
SELECT r.id, r.planned_at IS NOT NULL,
       EXISTS (SELECT FROM oncemore.claim c WHERE c.job_type = r.parent_type AND c.entity = r.parent_entity AND c.owner IS NULL AND c.trouble = 'failed'),
       EXISTS (SELECT FROM oncemore.run_control c WHERE c.run = r.id AND c.cancelled IS NOT NULL)
FROM oncemore.run r WHERE r.parent_type = $1 AND r.parent_entity = $2 AND r.ended_at IS NULL`

	controlSQL = `/* run: control */ INSERT INTO oncemore.run_control (run, rate, canary, canary_share) VALUES ($1, $2, $3, $4)`
)

// tell queues an entry of a run's history.
func tell(b *pgx.Batch, run int64, kind, detail string) {
	b.Queue(`/* run: tell */ INSERT INTO oncemore.run_event (run, kind, detail) VALUES ($1, $2, $3)`, run, kind, ledger.Sanitize(detail, 1000))
}

// registerRerun adds the job type whose messages carry the re-runs of k.
func (w *Worker) registerRerun(ctx context.Context, k *kind) error {
	name := rerunPrefix + k.name
	e := &jobs.Erased{Type: name, KeyType: name, Effect: jobs.Repeatable,
		Decode: func(entity string, _ []byte) (jobs.Input, error) {
			return jobs.Input{Args: rerunArgs{name, entity}, Fingerprint: 1}, nil
		},
		FanOut: func(jobs.Args) jobs.Source { return jobs.Source{} },
		Policy: jobs.Policy{Timeout: planTimeout, Attempts: 10, PackSize: 1, Priority: rerunPriority, Backoff: jobs.DefaultBackoff}}
	c := &kind{Erased: e, name: name, rerunOf: k, Type: ledger.Type{Name: name, Effect: e.Effect, Timeout: e.Timeout}}
	var before []string
	for _, alias := range k.Aliases {
		before = append(before, rerunPrefix+alias)
	}
	if err := w.ledger.Declare(ctx, &c.Type, "", before...); err != nil {
		return err
	}
	w.kinds[name] = c
	// A run goes on when its type has another name: its messages have the one of when it was begun. A
	// name that has a number of its own is a kind of its own, or its run would not be found.
	rows, _ := w.pool.Query(ctx, `SELECT t.name, t.id FROM oncemore.job_type t WHERE t.name = ANY ($1)`, before)
	var alias string
	var id int32
	_, err := pgx.ForEachRow(rows, []any{&alias, &id}, func() error {
		w.kinds[alias] = c
		if id != c.ID {
			own := *e
			own.Type, own.KeyType = alias, alias
			w.kinds[alias] = &kind{Erased: &own, name: alias, rerunOf: k, Type: ledger.Type{ID: id, Name: alias, Effect: e.Effect, Timeout: e.Timeout}}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for the re-runs of earlier names of %s: %w", k.name, err)
	}
	return nil
}

// planTimeout bounds one visit. The first seals the plan, which for a slow source over many
// millions may take its time.
const planTimeout = time.Hour

type rerunArgs struct{ name, key string }

func (a rerunArgs) JobType() string { return a.name }
func (a rerunArgs) Entity() string  { return a.key }

// A rerun is a run as a visit finds it.
type rerun struct {
	run
	plan.Selection
	by, reason string
	seen       plan.Tally

	// Why; nil: it is not. A reason may be empty.
	paused, cancel, brake *string

	rate        float64
	canary      int64
	canaryShare float64

	sent               int64
	nextPack, nextItem int
	batch, ahead       int
	credit             float64
	idle               time.Duration // since something was sent
	waits              string
	took               tempo
	wait               time.Duration // until the next visit
}

// rerun makes one visit.
func (l *life) rerun(it *item) {
	ctx := l.begin(it)
	defer ctx.end()
	r, err := l.visitRerun(ctx, it)
	l.conclude(it, err, "the re-run of "+it.kind.rerunOf.name, r.tale)
}

func (r *rerun) tale() string {
	switch {
	case r.id == 0:
		return "the re-run has ended before"
	case r.complete:
		return fmt.Sprintf("run %d is complete: %d done", r.id, r.items)
	case r.ended:
		return fmt.Sprintf("run %d has ended: of %d %d failed, %d in doubt, %d not ready", r.id, r.items, r.failed, r.inDoubt, r.notReady)
	case r.waits != "":
		return fmt.Sprintf("run %d waits: %s", r.id, r.waits)
	}
	return fmt.Sprintf("run %d goes on: %d of %d sent", r.id, r.sent, r.items)
}

// visitRerun looks after the re-run of it once.
func (l *life) visitRerun(ctx context.Context, it *item) (*rerun, error) {
	child := it.kind.rerunOf
	before, chunk, err := l.readRerun(ctx, it, child)
	if err != nil {
		return nil, err
	}
	hold := ""
	if before.planned && before.sent < before.items {
		hold = l.health(ctx)
	}
	var r *rerun
	err = l.inVisit(ctx, it, func(tx pgx.Tx, b *pgx.Batch) (end visited, err error) {
		if r, err = loadRerun(ctx, tx, it, loadRerunSQL+` FOR UPDATE OF r`); err != nil {
			return end, err
		}
		switch {
		case r.id == 0:
			return visited{ended: true}, nil // it has ended before
		case r.cancel != nil:
			err = l.cancelRun(ctx, tx, &r.run, child, *r.cancel)
		case !r.planned:
			err = l.planRerun(ctx, tx, r, child, chunk)
		default:
			err = l.pump(ctx, tx, r, child, hold)
		}
		if err != nil {
			return end, err
		}
		r.save(b)
		if r.planned && !before.planned {
			tell(b, r.id, "planned", fmt.Sprintf("%d to do, %d done already", r.items, r.skipped))
		}
		return visited{r.id, r.ended, r.wait}, nil
	})
	return r, err
}

// readRerun reads the next part of a source in Go, where one is to be planned. A run that is
// cancelled needs none, and its source may be what fails.
func (l *life) readRerun(ctx context.Context, it *item, child *kind) (*rerun, *plan.Chunk, error) {
	var r *rerun
	err := inTx(ctx, l.pool, func(tx pgx.Tx) (err error) {
		r, err = loadRerun(ctx, tx, it, loadRerunSQL)
		return err
	})
	if err != nil || r.id == 0 || r.planned || r.cancel != nil || !child.Erased.Source.InGo() {
		return r, nil, err
	}
	var c *plan.Chunk
	err = l.guard([]*item{it}, func() (err error) { c, err = r.survey(child).Read(ctx, r.cursor, seqChunk); return err })
	return r, c, err
}

func loadRerun(ctx context.Context, tx pgx.Tx, it *item, query string) (*rerun, error) {
	r := &rerun{}
	var selection, seen string
	err := tx.QueryRow(ctx, query, it.kind.ID, it.Entity).Scan(&r.id, &r.epoch, &r.planned, &r.cursor, &r.items, &r.packs, &r.verified,
		&r.skipped, &r.open, &selection, &r.by, &r.reason, &seen, &r.sent, &r.nextPack, &r.nextItem, &r.batch, &r.ahead, &r.credit, &r.idle, &r.waits, &r.age,
		&r.paused, &r.cancel, &r.rate, &r.canary, &r.canaryShare, &r.brake)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, nil
	} else if err != nil {
		return nil, err
	}
	r.rate, r.credit = counted(r.rate), counted(r.credit)
	if err := json.Unmarshal([]byte(selection), &r.Selection); err != nil {
		return nil, jobs.Permanent(fmt.Errorf("decode the selection of run %d: %w", r.id, err))
	}
	if seen != "" {
		if err := json.Unmarshal([]byte(seen), &r.seen); err != nil {
			return nil, jobs.Permanent(fmt.Errorf("decode what the planning of run %d saw: %w", r.id, err))
		}
	}
	return r, nil
}

const loadRerunSQL = `
SELECT r.id, r.epoch, r.planned_at IS NOT NULL, r.cursor, r.items, r.packs, r.verified, r.skipped, r.open,
       coalesce(r.selection, '{}'), r.asked_by, r.reason, r.seen, r.sent, r.next_pack, r.next_item, r.batch, r.ahead, r.credit,
       clock_timestamp() - coalesce(r.sent_at, r.planned_at, r.started_at), r.waits, clock_timestamp() - r.started_at,
       c.paused, c.cancelled, coalesce(c.rate, 0), coalesce(c.canary, 0), coalesce(c.canary_share, 0),
       (SELECT b.reason FROM oncemore.brake b
        WHERE b.scope = '' OR b.scope IN (SELECT t.name FROM oncemore.job_type t WHERE t.id = r.job_type) ORDER BY b.scope LIMIT 1)
FROM oncemore.run r LEFT JOIN oncemore.run_control c ON c.run = r.id
WHERE r.parent_type = $1 AND r.parent_entity = $2 AND r.ended_at IS NULL`

func (r *rerun) survey(child *kind) *plan.Survey {
	return &plan.Survey{Subject: plan.Subject{Type: child.Type, Source: child.Erased.Source, Decode: child.Erased.Decode},
		Selection: r.Selection, Epoch: r.epoch, Tally: r.seen}
}

// planRerun seals the plan: whole for a source in SQL, a chunk at a time for one in Go.
func (l *life) planRerun(ctx context.Context, tx pgx.Tx, r *rerun, child *kind, chunk *plan.Chunk) error {
	s := r.survey(child)
	seal := &sealing{tx: tx, r: r}
	s.Each = func(items []plan.Item) error { return seal.add(ctx, items) }
	var err error
	switch {
	case chunk != nil:
		err = s.FromChunk(ctx, tx, chunk)
	case child.Erased.Source.IsZero():
		if r.Force {
			err = jobs.Permanent(fmt.Errorf("%s has no source that could name what is to be forced", child.name))
		}
	default:
		err = s.FromSource(ctx, tx)
	}
	r.planned, r.cursor = chunk == nil || !chunk.More || s.Capped, ""
	if err == nil && !r.planned {
		r.cursor = chunk.After
	}
	if err == nil && chunk == nil {
		err = s.FromOpen(ctx, tx)
	}
	if err == nil {
		err = seal.close(ctx)
	}
	r.seen = s.Tally
	r.skipped = s.Seen[ledger.Done]
	r.open = r.items
	return err
}

// sealing stores the items of a plan in packs.
type sealing struct {
	tx   pgx.Tx
	r    *rerun
	rest []plan.Item
}

func (s *sealing) add(ctx context.Context, items []plan.Item) error {
	s.rest = append(s.rest, items...)
	b := &pgx.Batch{}
	for len(s.rest) >= queue.MaxItems {
		s.pack(b, queue.MaxItems)
	}
	return s.tx.SendBatch(ctx, b).Close()
}

func (s *sealing) close(ctx context.Context) error {
	b := &pgx.Batch{}
	if len(s.rest) > 0 {
		s.pack(b, len(s.rest))
	}
	return s.tx.SendBatch(ctx, b).Close()
}

func (s *sealing) pack(b *pgx.Batch, n int) {
	entities, args, reasons := make([]string, n), make([]string, n), make([]string, n)
	for i, it := range s.rest[:n] {
		entities[i], args[i], reasons[i] = it.Entity, it.Args, string(it.Reason)
	}
	b.Queue(`/* run: seal a pack */ INSERT INTO oncemore.run_pack (run, pack, entities, args, reasons) VALUES ($1, $2, $3, $4, $5)`,
		s.r.id, s.r.packs, entities, args, reasons)
	s.r.packs++
	s.r.items += int64(n)
	s.rest = append(s.rest[:0], s.rest[n:]...)
}

// save queues what the visit made of the run.
func (r *rerun) save(b *pgx.Batch) {
	seen, _ := json.Marshal(r.seen)
	b.Queue(saveRerunSQL, r.id, r.planned, r.cursor, r.items, r.packs, r.verified, r.skipped, r.open, r.failed, r.inDoubt, r.notReady,
		r.ended, r.complete, r.cancelled, string(seen), r.sent, r.nextPack, r.nextItem, r.batch, r.ahead, r.credit, r.idle == 0, ledger.Sanitize(r.waits, 500))
}

const saveRerunSQL = `
/* run: save a re-run */
UPDATE oncemore.run
SET planned_at = CASE WHEN $2 THEN coalesce(planned_at, clock_timestamp()) END, cursor = $3, items = $4, packs = $5, verified = $6,
    skipped = $7, open = $8, failed = $9, in_doubt = $10, not_ready = $11, ended_at = CASE WHEN $12 THEN clock_timestamp() END, complete = $13,
    cancelled = $14, seen = $15, sent = $16, next_pack = $17, next_item = $18, batch = $19, ahead = $20, credit = $21,
    sent_at = CASE WHEN $22 THEN clock_timestamp() ELSE sent_at END, waits = $23, visits = visits + 1
WHERE id = $1`

// health asks whether the database can bear more; empty: it can, or nobody can tell.
func (l *life) health(ctx context.Context) string {
	_, wait := l.gauge.Read(ctx)
	if wait == nil {
		return ""
	}
	return wait.Signal + ": " + wait.Reason
}
