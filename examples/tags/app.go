package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// schema stands for the tables that an application has anyway. It may be run again.
//
// (tag has no unique key: what is there twice can be counted.)
const schema = `
CREATE SCHEMA IF NOT EXISTS tags;
CREATE TABLE IF NOT EXISTS tags.document (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    revision bigint NOT NULL DEFAULT 1,
    body     bytea  NOT NULL            -- as it was uploaded: UTF-8, most of the time
);
CREATE TABLE IF NOT EXISTS tags.tag (
    document_id bigint NOT NULL,
    revision    bigint NOT NULL,
    tag         text   NOT NULL
);
CREATE INDEX IF NOT EXISTS tag_document ON tags.tag (document_id)`

// badText is Latin-1.
const badText = "a caf\xe9 with a #garden"

// seed makes the tables and some documents, one of which is no UTF-8.
func seed(ctx context.Context, db *pgxpool.Pool, documents int) (bad int64, err error) {
	bodies := make([][]byte, documents)
	for i := range bodies {
		bodies[i] = []byte(text())
	}
	bodies[documents/2] = []byte(badText)
	if _, err = db.Exec(ctx, schema); err == nil {
		_, err = db.Exec(ctx, `INSERT INTO tags.document (body) SELECT unnest($1::bytea[])`, bodies)
	}
	if err == nil {
		err = db.QueryRow(ctx, `SELECT max(id) FROM tags.document WHERE body = $1`, []byte(badText)).Scan(&bad)
	}
	if err == nil {
		_, err = db.Exec(ctx, `ANALYZE tags.document`)
	}
	if err != nil {
		return 0, fmt.Errorf("make documents: %w", err)
	}
	return bad, nil
}

var words = strings.Fields("anchor birch cedar dune ember fjord glade heath inlet juniper kelp larch moss nettle oak pine quartz reed sorrel thistle")

// text has some tags, of which one may stand there twice.
func text() string {
	var b strings.Builder
	for range 3 + rand.N(6) {
		fmt.Fprintf(&b, "The %s is #%s. ", words[rand.N(len(words))], words[rand.N(len(words))])
	}
	return b.String()
}

const editSQL = `UPDATE tags.document SET body = $2, revision = revision + 1 WHERE id = $1 RETURNING revision`

// edit changes a document, and asks in the same transaction that it is indexed.
func edit(ctx context.Context, db *pgxpool.Pool, to *pgqueue.Queue, id int64, body string) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		ask := IndexDocument{DocumentID: id}
		if err := tx.QueryRow(ctx, editSQL, id, []byte(body)).Scan(&ask.Revision); err != nil {
			return err
		}
		return jobs.Enqueue(ctx, to.Tx(tx), ask)
	})
	if err != nil {
		return fmt.Errorf("edit document %d: %w", id, err)
	}
	return nil
}

// An editor is the application beside the index: documents change all the while.
type editor struct {
	*stage.Application
	edits atomic.Int64
}

// openEditor edits documents from first to last, but for those that a person has open.
func openEditor(ctx context.Context, db *pgxpool.Pool, to *pgqueue.Queue, first, last int64, but ...int64) *editor {
	e := &editor{}
	e.Application = stage.OpenApplication(ctx, 10*time.Millisecond, func(ctx context.Context) error {
		id := first + rand.N(last-first+1)
		if slices.Contains(but, id) {
			return nil
		}
		err := edit(ctx, db, to, id, text())
		if err == nil {
			e.edits.Add(1)
		}
		return err
	})
	return e
}
