package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
)

// A standby streams from the private server of a stage, which has its data in dir/pg.
type standby struct {
	cluster *pglocal.Cluster
	db      *pgxpool.Pool
}

func openStandby(ctx context.Context, dir, dsn string) (*standby, error) {
	bin, err := pglocal.FindBin()
	if err != nil {
		return nil, err
	}
	home := filepath.Join(dir, "standby")
	if err := os.Mkdir(home, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for the standby: %w", err)
	}
	copied := filepath.Join(home, "data")
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "pg_basebackup"), "-d", dsn, "-D", copied, "-R", "-X", "stream", "-c", "fast").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("copy the server: %w: %s", err, out)
	}
	if err := giveTo(filepath.Join(dir, "pg", "data"), copied); err != nil {
		return nil, fmt.Errorf("give the copy to the server's user: %w", err)
	}
	s := &standby{}
	if s.cluster, err = pglocal.Start(ctx, pglocal.Options{Dir: home, Bind: true}); err != nil {
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

// giveTo gives a copy to the owner of the original: the server runs as that user.
func giveTo(original, copied string) error {
	fi, err := os.Stat(original)
	if err != nil {
		return err
	}
	owner, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return filepath.WalkDir(copied, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
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
