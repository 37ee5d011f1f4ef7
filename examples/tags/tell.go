package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// A play is the story while it goes on.
type play struct {
	*stage.Stage
	editor *editor
	bad    int64 // the document that is no UTF-8
	open   int64 // the document that is changed while it is being indexed
	proof  proof
}

// tell plays the story and counts what came of it. Each step waits for what it needs to
// have happened, never for a time.
func tell(ctx context.Context, o stage.Options, documents int) (_ *proof, err error) {
	p := &play{}
	p.Stage, err = stage.Open(ctx, "tags", o)
	defer func() { p.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	if p.bad, err = seed(ctx, p.DB, documents); err != nil {
		return nil, err
	}
	last, err := p.Int(ctx, `SELECT max(id) FROM tags.document`)
	if err != nil {
		return nil, err
	}
	for range 2 {
		if _, err = p.StartWorker(ctx); err != nil {
			return nil, err
		}
	}
	p.open = last
	p.editor = openEditor(ctx, p.DB, p.Queue, last-int64(documents)+1, last, p.bad, p.open)
	defer func() { err = errors.Join(err, p.editor.Close()) }()
	p.Say("%d documents, one of which is not UTF-8. They are edited all the while.", documents)

	for _, act := range []func(context.Context) error{p.index, p.changeMeanwhile, p.wipe, p.mend} {
		if err = act(ctx); err != nil {
			return nil, err
		}
	}
	if err = p.count(ctx); err != nil {
		return nil, err
	}
	return &p.proof, nil
}

// index makes the index. The document that does not decode is listed, and the rest goes on.
func (p *play) index(ctx context.Context) error {
	run, err := p.Call(ctx, worker.Order{Type: IndexDocument{}.JobType(), Reason: "the first index"})
	if err == nil {
		err = p.AwaitRun(ctx, run)
	}
	if err == nil { // what was being indexed for the editor was not the run's
		err = p.Await(ctx, "all but the bad one are indexed", `SELECT count(*) = 1`+factsSQL+` WHERE l.entity IS NULL`)
	}
	if err == nil {
		p.proof.Failed, err = p.failed(ctx)
	}
	return err
}

const failedSQL = `
SELECT coalesce((SELECT c.error FROM oncemore.claim c
    WHERE c.job_type = (SELECT id FROM oncemore.job_type WHERE name = 'index_document') AND c.entity = $1 AND c.trouble = 'failed'), '')`

// failed is the error with which the bad document is listed; empty: it is not.
func (p *play) failed(ctx context.Context) (message string, err error) {
	err = p.DB.QueryRow(ctx, failedSQL, fmt.Sprint(p.bad)).Scan(&message)
	if err != nil {
		err = fmt.Errorf("look whether document %d has failed: %w", p.bad, err)
	}
	return message, err
}

// changeMeanwhile changes a document while a worker has read it, and has not written its
// tags yet: the worker then waits for a lock that we hold on them.
func (p *play) changeMeanwhile(ctx context.Context) error {
	before, err := p.Int(ctx, completionsSQL, fmt.Sprint(p.open))
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, p.DB, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT FROM tags.tag WHERE document_id = $1 FOR UPDATE`, p.open); err != nil {
			return err
		}
		if err := edit(ctx, p.DB, p.Queue, p.open, "an #old text"); err != nil {
			return err
		}
		const readSQL = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '/* tags: remove */%')`
		if err := p.Await(ctx, "a worker has read it", readSQL); err != nil {
			return err
		}
		return edit(ctx, p.DB, p.Queue, p.open, "a #new text")
	})
	if err != nil {
		return fmt.Errorf("change document %d while it is being indexed: %w", p.open, err)
	}
	if err := p.Await(ctx, "the new text is indexed", `SELECT array_agg(tag) = '{new}' FROM tags.tag WHERE document_id = $1`, p.open); err != nil {
		return err
	}
	if err := p.Await(ctx, "that is recorded", `SELECT count(*) = 0 FROM oncemore.claim WHERE entity = $1`, fmt.Sprint(p.open)); err != nil {
		return err
	}
	after, err := p.Int(ctx, completionsSQL, fmt.Sprint(p.open))
	p.proof.Again = after - before
	p.Say("Document %d changed while a worker had its old text in hand: it was indexed %d times, and has the tag of the new text.", p.open, p.proof.Again)
	return err
}

// completionsSQL counts how often an entity was completed: the fact, and those it replaced.
const completionsSQL = `
SELECT (SELECT count(*) FROM oncemore.ledger WHERE job_type = t.id AND entity = $1)
     + (SELECT count(*) FROM oncemore.ledger_history WHERE job_type = t.id AND entity = $1)
FROM oncemore.job_type t WHERE t.name = 'index_document'`

// wipe deletes all rows, and rebuilds. What is recorded as done is no reason not to.
func (p *play) wipe(ctx context.Context) error {
	wiped, err := p.DB.Exec(ctx, `DELETE FROM tags.tag`)
	if err != nil {
		return fmt.Errorf("wipe the index: %w", err)
	}
	p.proof.Wiped = wiped.RowsAffected()
	p.Say("DELETE FROM tags.tag: %d rows are gone. The ledger still says that all is done, so the call is forced.", p.proof.Wiped)
	run, err := p.Call(ctx, worker.Order{Type: IndexDocument{}.JobType(), Reason: "the index was wiped", Selection: plan.Selection{Force: true}})
	if err == nil {
		err = p.AwaitRun(ctx, run)
	}
	if err == nil {
		p.proof.Epoch, err = p.Int(ctx, `SELECT epoch FROM oncemore.run WHERE id = $1`, run)
	}
	if err == nil {
		p.proof.FailedAgain, err = p.failed(ctx)
	}
	return err
}

// mend gives the document a text that decodes. Nobody has to call anything: its new
// revision asks to be indexed.
func (p *play) mend(ctx context.Context) error {
	p.Say("Document %d is saved anew, as UTF-8.", p.bad)
	if err := edit(ctx, p.DB, p.Queue, p.bad, "a café with a #garden"); err != nil {
		return err
	}
	return p.Await(ctx, "it is indexed", `SELECT array_agg(tag) = '{garden}' FROM tags.tag WHERE document_id = $1`, p.bad)
}
