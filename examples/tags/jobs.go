package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// IndexDocument asks that the index has the tags of a document, as of the given revision
// or a later one.
type IndexDocument struct {
	DocumentID int64 `json:"document_id"`
	Revision   int64 `json:"source_version"`
}

func (IndexDocument) JobType() string        { return "index_document" }
func (a IndexDocument) Entity() string       { return jobs.Key(a.DocumentID) }
func (a IndexDocument) SourceVersion() int64 { return a.Revision }

// documents names all that should be indexed, and the revision that each is at. Where the
// fact is of an earlier one, the document is missing again: its source is newer.
const documents = `
SELECT d.id::text AS entity, d.id AS document_id, d.revision AS source_version
FROM tags.document d`

// Jobs are those of this program.
func Jobs(db *pgxpool.Pool) []jobs.Definition {
	return []jobs.Definition{
		jobs.Job[IndexDocument]{
			Do:     indexer{db}.index,
			Effect: jobs.Repeatable, // rebuilding the tags of a document changes nothing
			Source: jobs.SQL[IndexDocument](documents),
		},
	}
}

type indexer struct{ db *pgxpool.Pool }

// index reads the document as it is now, and replaces its tags. It does not look whether
// the document changes meanwhile: who changes it asks for the new revision, and that is
// not done by this.
func (x indexer) index(ctx context.Context, a IndexDocument) error {
	var body []byte
	var revision int64
	err := x.db.QueryRow(ctx, `SELECT body, revision FROM tags.document WHERE id = $1`, a.DocumentID).Scan(&body, &revision)
	if errors.Is(err, pgx.ErrNoRows) {
		return x.replace(ctx, a.DocumentID, 0, nil) // it was deleted
	} else if err != nil {
		return fmt.Errorf("read document %d: %w", a.DocumentID, err)
	}
	tags, err := extract(body)
	if err != nil {
		return jobs.Permanent(fmt.Errorf("document %d, revision %d: %w", a.DocumentID, revision, err))
	}
	return x.replace(ctx, a.DocumentID, revision, tags)
}

var tag = regexp.MustCompile(`#([a-z]+)`)

// extract returns the tags in a text, each once.
func extract(body []byte) (tags []string, err error) {
	for i := 0; i < len(body); {
		r, n := utf8.DecodeRune(body[i:])
		if r == utf8.RuneError && n <= 1 {
			return nil, fmt.Errorf("the text is not UTF-8: byte %d is %#x", i, body[i])
		}
		i += n
	}
	for _, m := range tag.FindAllSubmatch(body, -1) {
		tags = append(tags, string(m[1]))
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

// replace stands for whatever an index offers for that. It is a transaction of its own,
// since an index need not be in the same database.
func (x indexer) replace(ctx context.Context, document, revision int64, tags []string) error {
	err := pgx.BeginFunc(ctx, x.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `/* tags: remove */ DELETE FROM tags.tag WHERE document_id = $1`, document); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `/* tags: add */ INSERT INTO tags.tag (document_id, revision, tag) SELECT $1, $2, unnest($3::text[])`, document, revision, tags)
		return err
	})
	if err != nil {
		return fmt.Errorf("replace the tags of document %d: %w", document, err)
	}
	return nil
}
