-- +goose Up

-- Forced work that is parked must come back as forced work. The highest epoch that came with the content.
ALTER TABLE oncemore.parked ADD COLUMN epoch bigint NOT NULL DEFAULT 0;
