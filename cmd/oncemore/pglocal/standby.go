package pglocal

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Follow copies the server that primary names, the superuser's DSN of one that [Start]
// started, into the new folder o.Dir, and starts the copy there as a hot standby that
// streams from it. It takes some seconds; ctx bounds them.
// SELECT pg_wal_replay_pause() on the standby makes it fall behind.
func Follow(ctx context.Context, primary string, o Options) (*Cluster, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, fmt.Errorf("prepare a standby in %s: %w", o.Dir, err)
	}
	args := []string{"-d", primary, "-D", s.data, "-R", "-X", "stream", "-c", "fast"}
	if o.NoSync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, "pg_basebackup"), args...)
	s.dress(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy the server into %s: %w: %s", o.Dir, err, out)
	}
	return Start(ctx, o)
}
