// Package migrations holds the database schema, as numbered SQL, and brings a
// database up to it.
//
// Everything lives in the schema oncemore. Its table oncemore.migration has a row
// for each migration that was applied; a migration and its row are committed
// together. So a database is at one version, always a whole one, and a process
// that dies while it migrates leaves the version before.
//
// Migrations only add (no more than an index may go), so that old code runs on a newer schema
// while a fleet is being replaced; there is no way down.
//
// Each begins with two bounds. A process that is frozen in the middle of one keeps its locks for a
// minute. And one that waits for who reads for long, a dump say, gives up after three seconds, since
// everybody else waits behind it: then Up fails, and may be called again.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed *.sql
var files embed.FS

const versionTable = "oncemore.migration"

// A Migration is one numbered step of the schema.
type Migration struct {
	Version   int64
	Name      string    // of its file, without the number: "core"
	AppliedAt time.Time // by the database's clock; zero: not applied

	file string
}

// A NewerError says that the database was migrated by a newer program than this
// one. Migrations only add, so this one goes on working.
type NewerError struct {
	Database int64 // the version of the database's schema
	Binary   int64 // the newest version that this program knows
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("the database's schema is at version %d, this program knows versions up to %d", e.Database, e.Binary)
}

// Up brings the database to the newest version and returns what it applied, in
// order; nothing when the database was current, which costs one small read and
// takes no lock. Many processes may call it at once: one migrates, and the others
// return when it is done. A database that is ahead of this program is left as it is, without an
// error: while a fleet is being replaced the old programs must be able to restart. [Status] tells.
// After an error the database is at some whole version, and calling Up again goes on from there.
//
// Up opens up to two connections of its own, with the pool's settings and hooks,
// so a small or busy pool cannot block it.
func Up(ctx context.Context, pool *pgxpool.Pool) ([]Migration, error) {
	return up(ctx, pool, files)
}

func up(ctx context.Context, pool *pgxpool.Pool, fsys fs.FS) ([]Migration, error) {
	db := open(pool)
	defer db.Close()
	for {
		if current, err := isCurrent(ctx, pool, fsys); current || err != nil {
			return nil, err
		}
		versions, held, err := tryUp(ctx, db, fsys)
		if held || err != nil {
			// Read from the database: a newer program may have held the lock before us.
			all, statusErr := status(ctx, pool, fsys)
			if _, newer := errors.AsType[*NewerError](statusErr); err == nil && !newer {
				err = statusErr
			}
			return slices.DeleteFunc(all, func(m Migration) bool { return !slices.Contains(versions, m.Version) }), err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another process that migrates: %w", context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const (
	// The key is arbitrary and must never change: "oncemore" in ASCII.
	sqlTryLock = `SELECT pg_try_advisory_xact_lock(x'6f6e63656d6f7265'::bigint)`

	// The lock's transaction idles while a long migration runs, and says now and then that it lives:
	// the lock of a process that is frozen, or whose machine is gone, goes after a minute.
	sqlBoundIdling = `SET LOCAL idle_in_transaction_session_timeout = '1min'`
	sqlAlive       = `SELECT 1`

	// CREATE SCHEMA IF NOT EXISTS wants the right to create schemas also where
	// the schema exists, and whoever prepared it need not grant that.
	sqlSchemaExists = `SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'oncemore')`
	sqlCreateSchema = `CREATE SCHEMA oncemore`
)

// aliveEvery is how often the lock says that it lives.
var aliveEvery = 10 * time.Second

// tryUp migrates if nobody else does (held). Goose works on a connection of its
// own while the lock is held by a transaction on another. That lock belongs to
// the transaction, not to the session, because a pooler in transaction mode
// (PgBouncer) gives each transaction another session.
//
// It tries instead of waiting in the database: a waiting statement holds a
// snapshot, and a migration that builds an index concurrently would wait for that
// snapshot, thus for ever.
func tryUp(ctx context.Context, db *sql.DB, fsys fs.FS) (applied []int64, held bool, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, false, fmt.Errorf("lock the migrations: %w", err)
	}
	defer tx.Rollback() // there is nothing to commit; this lets go of the lock
	if _, err := tx.ExecContext(ctx, sqlBoundIdling); err != nil {
		return nil, false, fmt.Errorf("lock the migrations: %w", err)
	}
	if err := tx.QueryRowContext(ctx, sqlTryLock).Scan(&held); err != nil {
		return nil, false, fmt.Errorf("lock the migrations: %w", err)
	}
	if !held {
		return nil, false, nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	alive := make(chan error, 1)
	go func() {
		lost := keepAlive(ctx, tx)
		stop(lost)
		alive <- lost
	}()
	applied, err = migrate(ctx, db, fsys)
	stop(nil)
	if lost := <-alive; lost != nil && err != nil {
		err = fmt.Errorf("%w: %w", lost, err)
	}
	return applied, true, err
}

// keepAlive returns when ctx ends, or an error when the lock is lost: then somebody else may migrate.
func keepAlive(ctx context.Context, tx *sql.Tx) error {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		limit, cancel := context.WithTimeout(ctx, aliveEvery)
		_, err := tx.ExecContext(limit, sqlAlive)
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("the lock of the migrations is lost: %w", err)
		}
	}
}

// migrate runs under the lock and returns the versions that it applied, also when
// a later one failed.
func migrate(ctx context.Context, db *sql.DB, fsys fs.FS) (applied []int64, err error) {
	var exists bool
	if err := db.QueryRowContext(ctx, sqlSchemaExists).Scan(&exists); err != nil {
		return nil, fmt.Errorf("look for the schema oncemore: %w", err)
	}
	if !exists {
		if _, err := db.ExecContext(ctx, sqlCreateSchema); err != nil {
			return nil, fmt.Errorf("create the schema oncemore: %w", err)
		}
	}
	// Goose would write to package log; Up's result says it all.
	provider, err := goose.NewProvider(goose.DialectPostgres, db, fsys, goose.WithTableName(versionTable),
		goose.WithSlog(slog.New(slog.DiscardHandler)), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	results, err := provider.Up(ctx)
	if partial, ok := errors.AsType[*goose.PartialError](err); ok {
		results = partial.Applied
		err = fmt.Errorf("%s: %w", partial.Failed.Source.Path, partial.Err)
	}
	for _, r := range results {
		applied = append(applied, r.Source.Version)
	}
	if err != nil {
		return applied, fmt.Errorf("migrate the database: %w", err)
	}
	return applied, nil
}

const sqlVersion = `SELECT coalesce(max(version_id), 0) FROM oncemore.migration`

// isCurrent compares two numbers: the path that every start of a process takes.
func isCurrent(ctx context.Context, pool *pgxpool.Pool, fsys fs.FS) (bool, error) {
	known, err := list(fsys)
	if err != nil {
		return false, err
	}
	newest := known[len(known)-1].Version
	var version int64
	err = pool.QueryRow(ctx, sqlVersion).Scan(&version)
	if isUndefinedTable(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the schema's version: %w", err)
	}
	return version >= newest, nil
}

const sqlApplied = `
SELECT version_id, max(tstamp AT TIME ZONE 'UTC') -- goose stores the session's local time, and open makes that UTC
  FROM oncemore.migration WHERE is_applied GROUP BY version_id`

// Status returns every migration that this program knows, in order, with the
// time it was applied. It returns them together with a [*NewerError] when the
// database is ahead. It changes nothing, and needs no right to.
func Status(ctx context.Context, pool *pgxpool.Pool) ([]Migration, error) {
	return status(ctx, pool, files)
}

func status(ctx context.Context, pool *pgxpool.Pool, fsys fs.FS) ([]Migration, error) {
	known, err := list(fsys)
	if err != nil {
		return nil, err
	}
	rows, _ := pool.Query(ctx, sqlApplied)
	at := map[int64]time.Time{}
	var version, newest int64
	var t time.Time
	_, err = pgx.ForEachRow(rows, []any{&version, &t}, func() error {
		at[version], newest = t, max(newest, version)
		return nil
	})
	if err != nil && !isUndefinedTable(err) {
		return nil, fmt.Errorf("read the applied migrations: %w", err)
	}
	for i := range known {
		known[i].AppliedAt = at[known[i].Version]
	}
	if last := known[len(known)-1].Version; newest > last {
		return known, &NewerError{Database: newest, Binary: last}
	}
	return known, nil
}

// list returns the migrations in fsys by version, which is the order of their
// names. It is an error if there is none.
func list(fsys fs.FS) ([]Migration, error) {
	paths, err := fs.Glob(fsys, "*.sql")
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, errors.New("this program holds no migrations")
	}
	var ms []Migration
	for _, p := range paths {
		v, err := goose.NumericComponent(p)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", p, err)
		}
		ms = append(ms, Migration{Version: v, Name: name(p), file: p})
	}
	return ms, nil
}

// name of "00001_core.sql" is "core".
func name(p string) string {
	_, n, _ := strings.Cut(strings.TrimSuffix(path.Base(p), ".sql"), "_")
	return n
}

// open gives goose, which speaks database/sql, connections like the pool's but
// not out of it: with every connection of a pool waiting for the lock there would
// be none for its holder.
func open(pool *pgxpool.Pool) *sql.DB {
	cfg := pool.Config()
	conn := cfg.ConnConfig.Copy()
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec // no named statements, which poolers lose
	conn.RuntimeParams["timezone"] = "UTC"
	var opts []stdlib.OptionOpenDB
	if cfg.BeforeConnect != nil {
		opts = append(opts, stdlib.OptionBeforeConnect(cfg.BeforeConnect))
	}
	if cfg.AfterConnect != nil {
		opts = append(opts, stdlib.OptionAfterConnect(cfg.AfterConnect))
	}
	return stdlib.OpenDB(*conn, opts...)
}

func isUndefinedTable(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "42P01"
}
