-- +goose Up

-- Every request paid for this index, and it only served to delete answers, which can wait: they are
-- found by reading the table a stretch at a time. A program of before finds them by reading all of it.
-- Requests must not wait behind us for somebody who reads for long, a dump say: then this fails, and may
-- be called again.
SET LOCAL lock_timeout = '3s';
DROP INDEX IF EXISTS oncemore.response_expires_at;
