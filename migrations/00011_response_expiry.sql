-- +goose Up

-- Every request paid for this index, and it only served to delete answers, which can wait: they are
-- found by reading the table a stretch at a time. A program of before finds them by reading all of it.
DROP INDEX IF EXISTS oncemore.response_expires_at;
