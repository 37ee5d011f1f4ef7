-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- Every request paid for this index, and it only served to delete answers, which can wait: they are
-- found by reading the table a stretch at a time. A program of before finds them by reading all of it.
DROP INDEX IF EXISTS oncemore.response_expires_at;
