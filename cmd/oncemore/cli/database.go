package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// errNoDatabase tells a new user where to begin.
var errNoDatabase = errors.New("no database is named: give --database-url, or set DATABASE_URL or PGHOST and its kin. " +
	"For a private one, run 'oncemore dev' in another terminal: it prints its URL")

// url is the database that the command is about; empty leaves all to the PG* variables.
func (p *program) url() (string, error) {
	if p.databaseURL != "" {
		return p.databaseURL, nil
	}
	if u := os.Getenv("DATABASE_URL"); u != "" {
		return u, nil
	}
	for _, name := range []string{"PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"} {
		if os.Getenv(name) != "" {
			return "", nil
		}
	}
	return "", errNoDatabase
}

// connect opens a small pool and makes sure that the database answers.
func (p *program) connect(ctx context.Context) (*pgxpool.Pool, error) {
	url, err := p.url()
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the database's address: %w", err) // pgx leaves the password out
	}
	config.MaxConns = 4
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = p.Name
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err == nil {
		err = pool.Ping(ctx)
	}
	if err != nil {
		if pool != nil {
			pool.Close()
		}
		return nil, fmt.Errorf("reach the database: %w", err)
	}
	return pool, nil
}

// reading runs statements that may not write, each bounded in time.
func reading(ctx context.Context, pool *pgxpool.Pool, limit time.Duration, f func(pgx.Tx) error) error {
	return explain(pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", limit.Milliseconds())); err != nil {
			return err
		}
		return f(tx)
	}))
}

// explain adds what to do to errors that a new user meets.
func explain(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "3F000" || pg.Code == "42P01") {
		return fmt.Errorf("%w (is the schema there? run 'oncemore migrate up')", err)
	}
	return err
}

// timedOut tells whether the statement's own limit ended it.
func timedOut(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "57014"
}

// set is the application's jobs; nil where the program was not given any.
func (p *program) set(ctx context.Context, pool *pgxpool.Pool) (*jobs.Set, error) {
	if p.Set == nil {
		return nil, nil
	}
	set, err := p.Set(ctx, pool)
	if err != nil {
		return nil, fmt.Errorf("put the application's jobs together: %w", err)
	}
	return set, nil
}
