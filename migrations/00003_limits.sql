-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- Limits of a job type that hold across all workers. A row is the turnstile of its type: who has
-- it locked decides, and what was given out before is visible then.
CREATE TABLE oncemore.fleet_limit (
    job_type   integer PRIMARY KEY,
    next_start timestamptz NOT NULL DEFAULT clock_timestamp()   -- when the next entity may begin, by the rate
) WITH (fillfactor = 50);

-- How many bodies a worker may have running at once. It counts while the worker is not declared dead.
CREATE TABLE oncemore.permit (
    job_type integer NOT NULL,
    worker   bigint  NOT NULL,
    bodies   integer NOT NULL,
    PRIMARY KEY (job_type, worker)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
