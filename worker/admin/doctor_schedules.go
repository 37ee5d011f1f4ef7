package admin

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// checkSchedules looks for schedules that stand still. Nothing else shows it: a tick that
// nobody decides leaves no message, and nothing that is missing.
func checkSchedules(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	now, err := serverTime(ctx, tx)
	if err != nil {
		return nil, err
	}
	all, err := readSchedules(ctx, tx, "", now)
	if err != nil {
		return nil, err
	}
	const most = 20
	var found []Check
	var paused []string
	for _, s := range all {
		switch {
		case s.Paused != nil:
			paused = append(paused, s.Name)
		case s.health != OK && len(found) < most:
			found = append(found, Check{State: s.health, Found: fmt.Sprintf("%q is %s", s.Name, s.State), Do: s.do})
		}
	}
	if len(paused) > 0 {
		return append(found, ok("%d are there; paused are: %s", len(all), listed(paused))...), nil
	}
	return orOK(found, "%d are there, and none stands still", len(all)), nil
}
