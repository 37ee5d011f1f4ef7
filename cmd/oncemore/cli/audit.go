package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "List what operators changed, the newest first", Args: cobra.NoArgs}
	output := outputFlag(cmd, "table", "json", "jsonl")
	var f admin.AuditFilter
	var window windowFlags
	flags := cmd.Flags()
	flags.StringVar(&f.Type, "type", "", "acts on this job `type`")
	flags.StringVar(&f.Action, "action", "", "acts of this `kind`: "+strings.Join(acts, ", "))
	flags.StringVar(&f.Actor, "actor", "", "acts of this `person`")
	window.add(cmd, "acts")
	flags.IntVar(&f.Limit, "limit", 50, "how many to list")
	_ = cmd.RegisterFlagCompletionFunc("action", cobra.FixedCompletions(acts, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) (err error) {
		if f.Limit <= 0 {
			return usageError("--limit must be positive")
		}
		if f.Window, err = window.window(); err != nil {
			return err
		}
		pool, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer pool.Close()
		entries, err := admin.Audit(cmd.Context(), pool, f)
		if err != nil {
			return err
		}
		return writeAudit(cmd, *output, entries)
	})
	return cmd
}

// acts are the kinds of them.
var acts = []string{"resolve", "retry", "resend", "drop", "enqueue", "rerun", "pause", "resume", "cancel", "rate", "stop-all", "release",
	"schedule-pause", "schedule-resume", "schedule-run", "schedule-put", "schedule-delete"}

func writeAudit(cmd *cobra.Command, output string, entries []admin.AuditEntry) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json":
		if entries == nil {
			entries = []admin.AuditEntry{}
		}
		return writeJSON(out, entries)
	case "jsonl":
		e := json.NewEncoder(out)
		for _, entry := range entries {
			if err := e.Encode(entry); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(out, "ID", "AT", "ACTOR", "ACTION", "TYPE", "ENTITIES", "FIRST", "REASON", "DETAIL")
	for _, e := range entries {
		first := ""
		if len(e.Sample) > 0 {
			first = e.Sample[0]
		}
		t.row(fmt.Sprint(e.ID), stamp(e.At), cell(e.Actor, narrow), e.Action, orDash(cell(e.Type, wide)), thousands(e.Entities),
			orDash(cell(first, wide)), orDash(cell(e.Reason, narrow)), orDash(cell(e.Detail, narrow)))
	}
	return t.Flush()
}
