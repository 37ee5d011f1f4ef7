package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// CreateProfile asks that a user has a profile.
type CreateProfile struct {
	UserID int64 `json:"user_id"`
}

func (CreateProfile) JobType() string  { return "create_profile" }
func (a CreateProfile) Entity() string { return jobs.Key(a.UserID) }

// usersWithoutProfile is the natural check: just the users that have no profile. What it
// names is what is missing, so each run takes only the rows that are new since the last.
const usersWithoutProfile = `
SELECT u.id::text AS entity, u.id AS user_id
FROM profiles.users u
WHERE NOT EXISTS (SELECT FROM profiles.profile p WHERE p.user_id = u.id)`

// Jobs are those of this program.
func Jobs() []jobs.Definition {
	return []jobs.Definition{
		jobs.Job[CreateProfile]{
			DoMany: createProfiles,
			Source: jobs.SQL[CreateProfile](usersWithoutProfile),
			Policy: jobs.Policy{PackSize: 200}, // to begin with: a run tunes it to half a second's work
		},
	}
}

// The lock lets nobody rename a user between our reading the name and the commit of the
// profile: who renames then finds the profile there, and changes both. The order keeps two
// batches from waiting for each other.
const createProfilesSQL = `
/* profiles: create */
INSERT INTO profiles.profile (user_id, name, greeting)
SELECT u.id, u.name, 'Hello, ' || u.name
FROM (SELECT id, name FROM profiles.users WHERE id = ANY ($1) ORDER BY id FOR SHARE) u`

// createProfiles makes the profiles of many users. They are committed together with the
// facts that say so, or not at all.
func createProfiles(ctx context.Context, tx pgx.Tx, as []CreateProfile) error {
	ids := make([]int64, len(as))
	for i, a := range as {
		ids[i] = a.UserID
	}
	_, err := tx.Exec(ctx, createProfilesSQL, ids)
	// A row that breaks a constraint breaks it again however often it is tried. Of many it
	// is one: this is called again with halves, until that one is alone, and listed.
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(pg.Code, "23") {
		return jobs.Permanent(fmt.Errorf("create the profile: %w", err))
	}
	return err
}

// Nightly is the catch-up: what has come since the last time, for as long as the
// application itself makes no profiles yet.
func Nightly(spec string) worker.Schedule {
	return worker.Schedule{Name: "nightly_profiles", Spec: spec, Zone: "Europe/Berlin",
		Rerun: &worker.Order{Type: CreateProfile{}.JobType(), Reason: "the nightly catch-up, until the cut-over"}}
}
