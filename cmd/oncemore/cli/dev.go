package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/migrations"
)

func devCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "dev", Short: "Run a private PostgreSQL, with the schema in it, until Ctrl-C", Args: cobra.NoArgs,
		Long: `Run a private PostgreSQL from the installed server binaries until Ctrl-C.

Its schema is current and its data stay in the folder. Its URL is the one line on
stdout; it can be reached from this machine only, by this user only.`}
	dir := cmd.Flags().String("dir", devFolder(), "`folder` that keeps the database")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error { return dev(cmd, *dir) })
	return cmd
}

// devFolder is where a user's data belong. Root's database is run by another user, who
// cannot enter root's home.
func devFolder() string {
	if os.Geteuid() == 0 {
		return "/var/lib/oncemore"
	}
	if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "oncemore")
	}
	home, _ := os.UserHomeDir() // empty: the folder is then below the working directory
	return filepath.Join(home, ".local", "share", "oncemore")
}

func dev(cmd *cobra.Command, dir string) error {
	ctx := cmd.Context()
	cluster, err := pglocal.Start(ctx, pglocal.Options{Dir: dir})
	if err != nil {
		return err
	}
	defer func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := cluster.Stop(limit); err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), err)
		}
	}()
	pool, err := pgxpool.New(ctx, cluster.DSN)
	if err != nil {
		return fmt.Errorf("reach the private database: %w", err)
	}
	_, err = migrations.Up(ctx, pool)
	pool.Close()
	if err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), cluster.DSN)
	if !cluster.Started {
		fmt.Fprintf(cmd.ErrOrStderr(), "PostgreSQL %s in %s is running already, by another process.\n", cluster.Version, dir)
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "PostgreSQL %s, data in %s, until Ctrl-C. In another terminal:\n\n  export DATABASE_URL='%s'\n\n", cluster.Version, dir, cluster.DSN)
	<-ctx.Done()
	fmt.Fprintln(cmd.ErrOrStderr(), "stopping")
	return nil
}
