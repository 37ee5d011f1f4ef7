// Command publish is an editor whose requests may all be repeated, without request ids: a
// draft exists before the first letter is typed, what follows are updates of it, and whoever
// deletes it twice has deleted it.
//
//	go run ./examples/publish
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

const schema = `
CREATE SCHEMA IF NOT EXISTS publish;
CREATE TABLE IF NOT EXISTS publish.article (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    text         text NOT NULL DEFAULT '',
    published_at timestamptz                    -- NULL: a draft
);
CREATE TABLE IF NOT EXISTS publish.announcement (article_id bigint NOT NULL);
CREATE TABLE IF NOT EXISTS publish.post (text text NOT NULL);   -- as others do it: created whole
TRUNCATE publish.article, publish.announcement, publish.post    -- of an earlier play`

// Announce asks that the readers know of an article.
type Announce struct {
	ArticleID int64 `json:"article_id"`
}

func (Announce) JobType() string  { return "announce" }
func (a Announce) Entity() string { return jobs.Key(a.ArticleID) }

// Jobs are those of this program.
func Jobs(*pgxpool.Pool) []jobs.Definition {
	return []jobs.Definition{
		jobs.Job[Announce]{DoTx: func(ctx context.Context, tx pgx.Tx, a Announce) error {
			_, err := tx.Exec(ctx, `/* publish: announce */ INSERT INTO publish.announcement (article_id) VALUES ($1)`, a.ArticleID)
			return err
		}},
	}
}

// An app is the server.
type app struct {
	db    *pgxpool.Pool
	queue *pgqueue.Queue
}

func (a app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /articles", a.open)
	mux.HandleFunc("PUT /articles/{id}", a.save)
	mux.HandleFunc("PUT /articles/{id}/published", a.publish)
	mux.HandleFunc("DELETE /articles/{id}", a.remove)
	mux.HandleFunc("POST /posts", a.post)
	return mux
}

// open makes an empty draft when somebody opens the editor. It is the one request here that
// does more when it is repeated, and all it does more is nothing that anybody sees.
func (a app) open(w http.ResponseWriter, r *http.Request) {
	var id int64
	if err := a.db.QueryRow(r.Context(), `/* publish: open */ INSERT INTO publish.article DEFAULT VALUES RETURNING id`).Scan(&id); err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Location", fmt.Sprintf("/articles/%d", id))
	w.WriteHeader(http.StatusCreated)
}

// save replaces the text, which is then what it is however often that is done.
func (a app) save(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		refuse(w, err)
		return
	}
	// An UPDATE, so that what was deleted does not come back by a request that is late.
	done, err := a.db.Exec(r.Context(), `/* publish: save */ UPDATE publish.article SET text = $2 WHERE id = $1`, r.PathValue("id"), string(text))
	answer(w, done.RowsAffected() == 1, err)
}

// publish is an update as well. What is to happen once when it is published is a job on the
// article: asked for each time, done once.
func (a app) publish(w http.ResponseWriter, r *http.Request) {
	var ask Announce
	err := pgx.BeginFunc(r.Context(), a.db, func(tx pgx.Tx) error {
		err := tx.QueryRow(r.Context(), publishSQL, r.PathValue("id")).Scan(&ask.ArticleID)
		if err != nil {
			return err
		}
		return jobs.Enqueue(r.Context(), a.queue.Tx(tx), ask)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	answer(w, ask.ArticleID != 0, err)
}

// The time is that of the first request: it is when it was published.
const publishSQL = `/* publish: publish */ UPDATE publish.article SET published_at = coalesce(published_at, clock_timestamp()) WHERE id = $1 RETURNING id`

// remove succeeds when there is no such article, whoever saw to that.
func (a app) remove(w http.ResponseWriter, r *http.Request) {
	_, err := a.db.Exec(r.Context(), `/* publish: remove */ DELETE FROM publish.article WHERE id = $1`, r.PathValue("id"))
	answer(w, true, err)
}

// post is how not to do it: the article comes into being with its text, so that a request which
// is repeated makes another one, in public.
func (a app) post(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err == nil {
		_, err = a.db.Exec(r.Context(), `/* publish: post */ INSERT INTO publish.post (text) VALUES ($1)`, string(text))
	}
	answer(w, true, err)
}

// sweepSQL removes drafts in which nothing was ever typed. (A real one spares those of today.)
const sweepSQL = `/* publish: sweep */ DELETE FROM publish.article WHERE text = '' AND published_at IS NULL`

func answer(w http.ResponseWriter, found bool, err error) {
	switch {
	case err != nil:
		refuse(w, err)
	case !found:
		http.Error(w, "there is no such article", http.StatusNotFound)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func refuse(w http.ResponseWriter, _ error) {
	http.Error(w, "try again", http.StatusInternalServerError)
}

func main() {
	if len(os.Args) > 1 { // "worker" and its name: one of the play's
		stage.Main(func(context.Context) error { return stage.Work(os.Args[2], worker.Config{}, Jobs) })
		return
	}
	stage.Play(func(ctx context.Context) (*proof, error) {
		return tell(ctx, stage.Options{Out: os.Stdout, NoSync: true}, 20)
	})
}
