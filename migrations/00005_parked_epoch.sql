-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- Forced work that is parked must come back as forced work. The highest epoch that came with the content.
ALTER TABLE oncemore.parked ADD COLUMN epoch bigint NOT NULL DEFAULT 0;
