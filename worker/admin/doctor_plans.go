package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// A hotStatement is one that workers run all the time, and how its plan must be.
type hotStatement struct {
	name, sql, args string
	indexes         []string
	settings        string // the statement that the code runs before it
	inOrder         bool   // it may not sort
}

func hotStatements() (out []hotStatement) {
	for _, s := range ledger.Statements() {
		out = append(out, hotStatement{s.Name, s.SQL, s.Args, s.Indexes, ledger.PlannerSettings, false})
	}
	for _, s := range pgqueue.Statements() {
		out = append(out, hotStatement{s.Name, s.SQL, s.Args, s.Indexes, pgqueue.PlannerSettings, true})
	}
	return out
}

// checkPlans asks for the plans that the server makes without knowing the arguments, which
// are those that it keeps. Nothing is executed. Still it asks for the rights to do what the
// statements do, so a role that only reads sees but a few.
func checkPlans(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	if _, err := tx.Exec(ctx, `SET LOCAL plan_cache_mode = force_generic_plan`); err != nil {
		return nil, err
	}
	var found []Check
	var denied []string
	seen := 0
	for _, s := range hotStatements() {
		plan, err := planOf(ctx, tx, s)
		switch {
		case sqlState(err) == "42501":
			denied = append(denied, s.name)
		case err != nil:
			found = append(found, Check{State: Bad, Found: fmt.Sprintf("%q has no plan: %s", s.name, firstLine(err.Error())), Do: "see 'schema'"})
		default:
			seen++
			if faults := plan.faults(s); len(faults) > 0 {
				found = append(found, Check{State: Bad, Found: fmt.Sprintf("%q %s", s.name, strings.Join(faults, ", and ")),
					Do: "see 'indexes'; where they are all there, ANALYZE the table"})
			}
		}
	}
	found = orOK(found, "%d statements reach their rows by index", seen)
	if len(denied) > 0 {
		found = append(found, Check{State: Unseen, Found: fmt.Sprintf("the plans of %d statements: %s", len(denied), listed(denied)), Do: "run it as the workers' role"})
	}
	return found, nil
}

// planOf prepares s, as its name in the session goes again before anybody else has it.
func planOf(ctx context.Context, tx pgx.Tx, s hotStatement) (*planNode, error) {
	const name = "oncemore_doctor"
	var text string
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint
		if _, err := tx.Exec(ctx, s.settings); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `PREPARE `+name+` AS `+s.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `EXPLAIN (FORMAT JSON) EXECUTE `+name+`(`+s.args+`)`, pgx.QueryExecModeSimpleProtocol).Scan(&text)
		})
		if _, e := tx.Exec(ctx, `DEALLOCATE `+name); err == nil {
			err = e
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal([]byte(text), &plans); err != nil || len(plans) != 1 {
		return nil, fmt.Errorf("read the plan of %q: %w", s.name, err)
	}
	return &plans[0].Plan, nil
}

// A planNode is one step of a plan.
type planNode struct {
	Kind     string     `json:"Node Type"`
	Relation string     `json:"Relation Name"`
	Index    string     `json:"Index Name"`
	Plans    []planNode `json:"Plans"`
}

// faults says what a plan does that costs more the larger a table is.
func (n *planNode) faults(s hotStatement) (out []string) {
	var used []string
	n.each(func(n *planNode) {
		switch {
		case n.Kind == "Seq Scan" && n.Relation != "":
			out = append(out, "reads all of "+n.Relation)
		case n.Kind == "Hash Join" || n.Kind == "Merge Join":
			out = append(out, "reads a whole table for a "+strings.ToLower(n.Kind))
		case n.Kind == "Sort" && s.inOrder:
			out = append(out, "sorts what an index has in order")
		}
		used = append(used, n.Index)
	})
	for _, index := range s.indexes {
		if !slices.Contains(used, index) {
			out = append(out, "does not use the index "+index)
		}
	}
	return out
}

func (n *planNode) each(f func(*planNode)) {
	f(n)
	for i := range n.Plans {
		n.Plans[i].each(f)
	}
}
