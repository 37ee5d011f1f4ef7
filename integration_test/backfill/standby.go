package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
)

// A standby streams from the private server of a stage.
type standby struct {
	cluster *pglocal.Cluster
	db      *pgxpool.Pool
}

func openStandby(ctx context.Context, dir, dsn string) (_ *standby, err error) {
	s := &standby{}
	if s.cluster, err = pglocal.Follow(ctx, dsn, pglocal.Options{Dir: filepath.Join(dir, "standby"), Bind: true}); err != nil {
		return nil, err
	}
	if s.db, err = pgxpool.New(ctx, s.cluster.DSN); err != nil {
		s.close()
		return nil, fmt.Errorf("reach the standby: %w", err)
	}
	var recovering bool
	if err := s.db.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&recovering); err != nil || !recovering {
		s.close()
		return nil, fmt.Errorf("the copy is no standby (%t): %w", recovering, err)
	}
	return s, nil
}

// lag has it fall behind until catchUp.
func (s *standby) lag(ctx context.Context) error {
	if _, err := s.db.Exec(ctx, `SELECT pg_wal_replay_pause()`, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("stop the standby's replay: %w", err)
	}
	return nil
}

func (s *standby) catchUp(ctx context.Context) error {
	if _, err := s.db.Exec(ctx, `SELECT pg_wal_replay_resume()`, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("let the standby replay: %w", err)
	}
	return nil
}

func (s *standby) close() {
	if s.db != nil {
		s.db.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = s.cluster.Stop(ctx) // on a timeout it is stopped all the same
}
