package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
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
func (p *program) connect(ctx context.Context) (*pgxpool.Pool, error) { return p.connectMany(ctx, 4) }

// connectMany opens a pool of so many connections.
func (p *program) connectMany(ctx context.Context, conns int32) (*pgxpool.Pool, error) {
	url, err := p.url()
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the database's address: %w", err) // pgx leaves the password out
	}
	config.MaxConns = conns
	if config.PingTimeout == 0 {
		config.PingTimeout = 5 * time.Second // of a connection whose server is gone without a word
	}
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
	return tooLong(admin.Read(ctx, pool, limit, f), limit)
}

// tooLong says what may help where a look has taken too long.
func tooLong(err error, limit time.Duration) error {
	if admin.TimedOut(err) {
		return fmt.Errorf("%w (it takes longer than %s: narrow it down by a job type or --since, or give a longer --timeout where there is one)", err, limit)
	}
	return err
}

// look connects, puts the application's jobs together, and reads with them.
func (p *program) look(ctx context.Context, limit time.Duration, f func(tx pgx.Tx, set *jobs.Set) error) error {
	pool, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	set, err := p.set(ctx, pool)
	if err != nil {
		return err
	}
	return reading(ctx, pool, limit, func(tx pgx.Tx) error { return f(tx, set) })
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
