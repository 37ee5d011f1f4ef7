package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// schema stands for the tables that an application has anyway. It may be run again.
//
// (profile has no unique key on its user: what keeps a user from getting two is the ledger,
// and were there two, they could be counted.)
const schema = `
CREATE SCHEMA IF NOT EXISTS profiles;
CREATE TABLE IF NOT EXISTS profiles.users (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name  text                       -- older programs left it out now and then
);
CREATE TABLE IF NOT EXISTS profiles.profile (
    user_id  bigint NOT NULL REFERENCES profiles.users,
    name     text   NOT NULL,
    greeting text   NOT NULL
);
CREATE INDEX IF NOT EXISTS profile_user ON profiles.profile (user_id)`

const (
	seedSQL    = `INSERT INTO profiles.users (name) SELECT 'user ' || n FROM generate_series(1, $1::int) n`
	badUserSQL = `INSERT INTO profiles.users (name) VALUES (NULL) RETURNING id`
)

// seed makes the tables and some users, one of which, in the middle, has no name.
func seed(ctx context.Context, db *pgxpool.Pool, users int) (bad int64, err error) {
	if _, err = db.Exec(ctx, schema); err == nil {
		_, err = db.Exec(ctx, seedSQL, users/2)
	}
	if err == nil {
		err = db.QueryRow(ctx, badUserSQL).Scan(&bad)
	}
	if err == nil {
		_, err = db.Exec(ctx, seedSQL, users-users/2-1)
	}
	if err == nil {
		_, err = db.Exec(ctx, `ANALYZE profiles.users`)
	}
	if err != nil {
		return 0, fmt.Errorf("make users: %w", err)
	}
	return bad, nil
}

// An app is the application beside the backfill, for which nothing stops: users come and
// change their names.
type app struct {
	*stage.Application
	db       *pgxpool.Pool
	makes    atomic.Bool   // the profile of a new user itself
	came     atomic.Int64  // users
	with     atomic.Int64  // of those, with a profile
	switched chan struct{} // closed when the first of those has come: no sign-up of the old kind is under way
}

func openApp(ctx context.Context, db *pgxpool.Pool) *app {
	a := &app{db: db, switched: make(chan struct{})}
	a.Application = stage.OpenApplication(ctx, 5*time.Millisecond, a.serve)
	return a
}

// cutOver has the application make the profiles of new users itself, and returns when
// nobody signs up without one any more.
func (a *app) cutOver(ctx context.Context) error {
	a.makes.Store(true)
	select {
	case <-a.switched:
		return nil
	case <-a.Ended():
		return a.Close()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// serve is what users do in some milliseconds: one signs up, one is renamed.
func (a *app) serve(ctx context.Context) error {
	makesProfile := a.makes.Load()
	err := pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, signUpSQL, fmt.Sprintf("guest %d", a.came.Load()+1)).Scan(&id); err != nil || !makesProfile {
			return err
		}
		_, err := tx.Exec(ctx, createProfilesSQL, []int64{id})
		return err
	})
	if err != nil {
		return err
	}
	a.came.Add(1)
	if makesProfile && a.with.Add(1) == 1 {
		close(a.switched)
	}
	return pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		var id int64
		name := fmt.Sprintf("renamed %d", rand.Uint32())
		if err := tx.QueryRow(ctx, renameUserSQL, name, rand.Float64()).Scan(&id); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, renameProfileSQL, id, name)
		return err
	})
}

const (
	signUpSQL     = `INSERT INTO profiles.users (name) VALUES ($1) RETURNING id`
	renameUserSQL = `
UPDATE profiles.users SET name = $1 WHERE id = (
    SELECT id FROM profiles.users WHERE id >= $2 * (SELECT max(id) FROM profiles.users) AND name IS NOT NULL ORDER BY id LIMIT 1)
RETURNING id`
	renameProfileSQL = `UPDATE profiles.profile SET name = $2, greeting = 'Hello, ' || $2 WHERE user_id = $1`
)
