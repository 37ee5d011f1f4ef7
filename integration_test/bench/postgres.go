package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// serverParams make the Postgres a durable one whose checkpoints do not fall into a measurement.
var serverParams = []string{
	"fsync=on",
	"synchronous_commit=on",
	"full_page_writes=on",
	"shared_buffers=1GB",
	"max_wal_size=8GB",
	"checkpoint_timeout=30min",
}

// checkServer refuses a Postgres that is fast because it is not durable.
func checkServer(ctx context.Context, dsn string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer conn.Close(ctx)
	var version, fsync, commit, pages string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('fsync'),
		current_setting('synchronous_commit'), current_setting('full_page_writes')`).Scan(&version, &fsync, &commit, &pages)
	if err != nil {
		return fmt.Errorf("read the settings of Postgres: %w", err)
	}
	if fsync != "on" || commit != "on" || pages != "on" {
		return fmt.Errorf("fsync is %s, synchronous_commit %s, full_page_writes %s: all must be on", fsync, commit, pages)
	}
	progress("PostgreSQL %s, fsync and synchronous_commit on", version)
	return nil
}

// freshDatabase makes a database, empty or a copy of a template, and returns its name
// and what drops it.
func freshDatabase(ctx context.Context, o *options, template string) (name string, drop func() error, err error) {
	o.databases++
	name = fmt.Sprintf("bench_%d", o.databases)
	exec := func(ctx context.Context, sql string) error {
		conn, err := pgx.Connect(ctx, o.baseDSN)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, sql)
		return err
	}
	create := "CREATE DATABASE " + name
	if template != "" {
		create += " TEMPLATE " + template + " STRATEGY file_copy" // else all of it would go through the WAL
	}
	if err := exec(ctx, create); err != nil {
		return "", nil, fmt.Errorf("create database %s: %w", name, err)
	}
	return name, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("drop database %s: %w", name, err)
		}
		return nil
	}, nil
}

// connect opens a pool of poolSize connections, at least one of which stands.
func connect(ctx context.Context, dsn, database string) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("parse the address of Postgres: %w", err)
	}
	c.ConnConfig.Database = database
	c.MaxConns = poolSize
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open a pool: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("connect to database %s: %w", database, err)
	}
	return pool, nil
}

// vacuum gives the planner statistics and leaves nothing for autovacuum to do.
func vacuum(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, "VACUUM (ANALYZE)"); err != nil {
		return fmt.Errorf("vacuum: %w", err)
	}
	return nil
}

// checkpoint begins a measurement: the next one is gigabytes of WAL away.
func checkpoint(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// walPosition counts the bytes of WAL that the cluster has written.
func walPosition(ctx context.Context, pool *pgxpool.Pool) (at int64, err error) {
	err = pool.QueryRow(ctx, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").Scan(&at)
	if err != nil {
		return 0, fmt.Errorf("read the WAL position: %w", err)
	}
	return at, nil
}

// relationSize counts the bytes of a table with its indexes.
func relationSize(ctx context.Context, pool *pgxpool.Pool, relation string) (size int64, err error) {
	err = pool.QueryRow(ctx, "SELECT pg_total_relation_size($1::text::regclass)", relation).Scan(&size)
	if err != nil {
		return 0, fmt.Errorf("read the size of %s: %w", relation, err)
	}
	return size, nil
}
