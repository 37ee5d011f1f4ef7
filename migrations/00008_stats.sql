-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- How many were completed, summed once and for good: replaced facts count too. A quarter of an hour is the finest
-- that any time zone's hours are made of. It is a cache: TRUNCATE it, SET closed = NULL below, and it is made anew.
CREATE TABLE oncemore.completions_quarter (
    quarter  timestamptz NOT NULL,               -- the one that begins then
    n        bigint      NOT NULL,
    job_type integer     NOT NULL,
    PRIMARY KEY (job_type, quarter)
);

-- How far the sums go. One row, and its lock is the turn of who sums.
CREATE TABLE oncemore.completions_watermark (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    closed   timestamptz,                        -- everything before is summed, and nothing before is to come; NULL: nothing is
    quiet    timestamptz,                        -- all transactions that began before have ended
    asked    timestamptz,                        -- when this was asked anew; NULL: it was not
    running  text[] NOT NULL DEFAULT '{}'        -- of the transactions that were open when it was asked, those that still were when last seen
) WITH (fillfactor = 50);

-- Where there are no facts yet there is nothing to be made up for, beyond those of transactions that are
-- open at this moment.
INSERT INTO oncemore.completions_watermark (closed)
SELECT CASE WHEN NOT EXISTS (SELECT FROM oncemore.ledger) THEN date_bin('15 minutes', now() - interval '1 day', timestamptz '2000-01-01 00:00Z') END;

-- Only facts that are replaced pay for it. (The ledger's own are found by its BRIN.)
CREATE INDEX ledger_history_completed_at ON oncemore.ledger_history (completed_at);
