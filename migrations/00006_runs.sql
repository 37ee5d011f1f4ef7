-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- A run is a fan-out, or the re-run of a job type by a selection. What follows is a re-run's.
ALTER TABLE oncemore.run
    ADD COLUMN selection text,                      -- what was asked for, as JSON; NULL: all that the fan-out's source names
    ADD COLUMN asked_by  text NOT NULL DEFAULT '',
    ADD COLUMN reason    text NOT NULL DEFAULT '',  -- in the words of who asked
    ADD COLUMN origin    text NOT NULL DEFAULT '',  -- where it was asked: a command on a host, a schedule
    ADD COLUMN schedule  text,                      -- and of which tick, where it was a schedule
    ADD COLUMN tick      timestamptz,
    ADD COLUMN seen      text NOT NULL DEFAULT '',  -- how many entities by reason the planning saw, as JSON
    ADD COLUMN sent      bigint NOT NULL DEFAULT 0, -- items of the plan that went into messages
    ADD COLUMN next_pack integer NOT NULL DEFAULT 0,-- of run_pack, and the first item of it that is not sent
    ADD COLUMN next_item integer NOT NULL DEFAULT 0,
    ADD COLUMN batch     integer NOT NULL DEFAULT 0,-- items in one message, tuned; 0: not yet known
    ADD COLUMN ahead     integer NOT NULL DEFAULT 0,-- messages that may be on their way at once
    ADD COLUMN credit    double precision NOT NULL DEFAULT 0, -- items that the rate lets through now
    ADD COLUMN sent_at   timestamptz,
    ADD COLUMN waits     text NOT NULL DEFAULT '',  -- why nothing is sent; empty: it is, or all is sent
    ADD COLUMN cancelled boolean NOT NULL DEFAULT false;
CREATE UNIQUE INDEX run_tick ON oncemore.run (schedule, tick) WHERE schedule IS NOT NULL;

-- Arguments and reasons travel with the plan of a re-run: it is sent bit by bit.
ALTER TABLE oncemore.run_pack
    ADD COLUMN args    text[],
    ADD COLUMN reasons text[];

-- What operators want of a run, apart from the run's own row: who visits the run holds that one
-- locked, and nobody who wants to stop it shall wait for that.
CREATE TABLE oncemore.run_control (
    run          bigint PRIMARY KEY,
    paused       text,                       -- why; NULL: it is not
    cancelled    text,                       -- why; NULL: it is not
    rate         double precision NOT NULL DEFAULT 0,  -- items a second; 0: as fast as the signals let it
    canary       bigint NOT NULL DEFAULT 0,  -- so many first, and the rest only when few enough of them failed; 0: none
    canary_share double precision NOT NULL DEFAULT 0   -- of them may fail, 0 to 1
);

-- Stops all runs, or those of a job type, at their next message: the kill switch.
CREATE TABLE oncemore.brake (
    scope  text PRIMARY KEY,                 -- a job type; empty: all
    reason text        NOT NULL,
    actor  text        NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What happened to a run, append-only.
CREATE TABLE oncemore.run_event (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run    bigint      NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind   text        NOT NULL,             -- opened | planned | waiting | going | paused | resumed | rate | batch | canary | cancelled | ended
    detail text        NOT NULL DEFAULT ''
);
CREATE INDEX run_event_run ON oncemore.run_event (run, id);

-- How long the batches of a run take, summed by worker about once a second.
CREATE TABLE oncemore.run_pace (
    run     bigint      NOT NULL,
    worker  bigint      NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    batches bigint      NOT NULL,
    items   bigint      NOT NULL,
    busy    interval    NOT NULL,            -- of all the batches
    slowest interval    NOT NULL,            -- since the row was last read
    PRIMARY KEY (run, worker)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
