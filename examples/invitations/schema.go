package invitations

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Schema makes the tables of the example, which stand for those that an application has
// anyway. It may be run again.
const Schema = `
CREATE SCHEMA IF NOT EXISTS invitations;
CREATE TABLE IF NOT EXISTS invitations.event (
    id        bigint  PRIMARY KEY,
    name      text    NOT NULL,
    slug      text    NOT NULL UNIQUE,
    finalized boolean NOT NULL DEFAULT false -- only then its invitations may go out
);
CREATE TABLE IF NOT EXISTS invitations.invitee (
    event_id   bigint NOT NULL REFERENCES invitations.event,
    invitee_id bigint NOT NULL,
    name       text   NOT NULL,
    email      text   NOT NULL,
    PRIMARY KEY (event_id, invitee_id)
)`

// Seed makes the tables and fills them with finalized events, numbered from 1, and the
// given number of invitees among them. No event invites the same address twice.
func Seed(ctx context.Context, db *pgxpool.Pool, events, invitees int) error {
	if _, err := db.Exec(ctx, Schema); err != nil {
		return fmt.Errorf("make the tables of the invitations: %w", err)
	}
	for _, fill := range []struct {
		sql string
		arg []any
	}{{seedEventsSQL, []any{events}}, {seedInviteesSQL, []any{events, invitees}}} {
		if _, err := db.Exec(ctx, fill.sql, fill.arg...); err != nil {
			return fmt.Errorf("fill the tables of the invitations: %w", err)
		}
	}
	return nil
}

const seedEventsSQL = `
INSERT INTO invitations.event (id, name, slug, finalized)
SELECT n, (ARRAY['Summer party', 'Harvest supper', 'Winter concert', 'Spring walk'])[(n - 1) % 4 + 1] || ' ' || 2026 + n / 4, 'event-' || n, true
FROM generate_series(1, $1::int) n
ON CONFLICT (id) DO NOTHING`

const seedInviteesSQL = `
INSERT INTO invitations.invitee (event_id, invitee_id, name, email)
SELECT n % $1::int + 1, n, first, lower(first) || n || '@example.com'
FROM generate_series(1, $2::int) n,
     LATERAL (SELECT (ARRAY['Anna', 'Ben', 'Chloe', 'David', 'Emma', 'Farid', 'Grace', 'Henry', 'Ines', 'Jonas'])[n % 10 + 1] AS first) f
ON CONFLICT (event_id, invitee_id) DO NOTHING`
