-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- Names of job types are for ever; the number keeps the ledger's rows small. Several names may
-- share a number: that is how a renamed job type keeps its facts.
CREATE SEQUENCE oncemore.job_type_id AS integer;
CREATE TABLE oncemore.job_type (
    name     text COLLATE "C" PRIMARY KEY,
    id       integer     NOT NULL DEFAULT nextval('oncemore.job_type_id'),
    effect   text        NOT NULL DEFAULT '',   -- as the worker that registered it last declared it
    source   text,                              -- the query that names its entities, where it is SQL without parameters
    seen_at  timestamptz NOT NULL DEFAULT now()
);

-- One fact per (job type, entity), for ever: insert-only in normal life. The columns stand in the
-- order that wastes no padding; those that are mostly NULL stand last and cost nothing then.
CREATE TABLE oncemore.ledger (
    fingerprint    bigint      NOT NULL,
    completed_at   timestamptz NOT NULL DEFAULT now(),
    job_type       integer     NOT NULL,
    attempts       smallint    NOT NULL,
    evidence       "char"      NOT NULL,        -- t same transaction, r reported, c done-check, a adopted, o operator
    entity         text COLLATE "C" NOT NULL,
    run            bigint,                      -- NULL: none
    epoch          bigint,                      -- NULL: 0, never forced
    version        integer,                     -- NULL: 0
    source_version bigint,                      -- NULL: 0
    PRIMARY KEY (job_type, entity)
) WITH (
    -- Nothing here dies, so only insert-driven vacuum keeps the visibility map fresh.
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02
);
CREATE INDEX ledger_completed_at ON oncemore.ledger USING brin (completed_at);

-- Facts that were replaced by a fact of a higher epoch.
CREATE TABLE oncemore.ledger_history (
    archived_at timestamptz NOT NULL DEFAULT now(),
    LIKE oncemore.ledger
);
CREATE INDEX ledger_history_entity ON oncemore.ledger_history (job_type, entity, archived_at);

-- +goose StatementBegin
CREATE FUNCTION oncemore.archive_fact() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO oncemore.ledger_history (fingerprint, completed_at, job_type, attempts, evidence, entity, run, epoch, version, source_version)
    VALUES (OLD.fingerprint, OLD.completed_at, OLD.job_type, OLD.attempts, OLD.evidence, OLD.entity, OLD.run, OLD.epoch, OLD.version, OLD.source_version);
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER archive_fact BEFORE UPDATE ON oncemore.ledger
    FOR EACH ROW EXECUTE FUNCTION oncemore.archive_fact();

-- A worker is one process incarnation. Its id is never used again; dead_at is set once and stays.
CREATE TABLE oncemore.worker (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text        NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires    timestamptz NOT NULL,
    dead_at    timestamptz,
    cause      text                              -- stopped | lapsed
) WITH (fillfactor = 50);
CREATE INDEX worker_living ON oncemore.worker (id) WHERE dead_at IS NULL;

-- Every change to a claim draws a new fence from here, so that comparing the fence compares the row.
CREATE SEQUENCE oncemore.fence;
CREATE SEQUENCE oncemore.epoch;

-- What is open. Small, and it churns.
CREATE TABLE oncemore.claim (
    fence            bigint      NOT NULL,
    owner            bigint,                     -- the worker that holds it; NULL: nobody
    claimed_at       timestamptz NOT NULL DEFAULT now(),
    first_claimed_at timestamptz,                -- of the oldest attempt whose effect is not known to be absent
    not_before       timestamptz,                -- waiting until then; NULL: not waiting
    fingerprint      bigint      NOT NULL,
    epoch            bigint      NOT NULL,
    source_version   bigint      NOT NULL,
    run              bigint      NOT NULL,
    job_type         integer     NOT NULL,
    attempts         integer     NOT NULL,
    trouble          text,                       -- NULL | retrying | failed | in_doubt
    entity           text COLLATE "C" NOT NULL,
    args             text        NOT NULL,       -- all that another attempt needs
    error            text,                       -- of the last attempt, capped
    PRIMARY KEY (job_type, entity)
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 5000
);

-- Attempts that did not simply succeed, append-only.
CREATE TABLE oncemore.attempt (
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker      bigint,
    fence       bigint,
    job_type    integer     NOT NULL,
    number      integer     NOT NULL,
    entity      text COLLATE "C" NOT NULL,
    outcome     text        NOT NULL,            -- retrying | failed | in_doubt | disputed | resolved | note
    error_class text,
    error       text                             -- capped and sanitised
);
CREATE INDEX attempt_entity ON oncemore.attempt (job_type, entity, at);
CREATE INDEX attempt_at ON oncemore.attempt USING brin (at);

-- Input that could not be worked: kept and listed, once per content.
CREATE TABLE oncemore.parked (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reason   text        NOT NULL,               -- undecodable | unknown_type | conflict | not_ready, or the reason for which it waited too long
    type     text        NOT NULL,
    entity   text        NOT NULL,
    body     text        NOT NULL,               -- capped
    error    text        NOT NULL,
    digest   bytea       NOT NULL,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at  timestamptz NOT NULL DEFAULT now(),
    times    integer     NOT NULL DEFAULT 1,
    UNIQUE (digest)
);

-- One sealed batch: here a fan-out. Its plan is run_pack; its end is derived from the facts.
CREATE TABLE oncemore.run (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parent_type   integer     NOT NULL,
    parent_entity text COLLATE "C" NOT NULL,
    job_type      integer     NOT NULL,
    epoch         bigint      NOT NULL DEFAULT 0,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    planned_at    timestamptz,                   -- the plan was sealed first
    ended_at      timestamptz,
    complete      boolean     NOT NULL DEFAULT false, -- ended, and every item of the plan is a fact
    cursor        text        NOT NULL DEFAULT '',    -- of a source that is planned in pieces
    items         bigint      NOT NULL DEFAULT 0,     -- planned
    packs         integer     NOT NULL DEFAULT 0,
    verified      integer     NOT NULL DEFAULT 0,     -- packs below this number are all facts
    skipped       bigint      NOT NULL DEFAULT 0,     -- named by the source, and done already when planned
    open          bigint      NOT NULL DEFAULT 0,     -- at the last visit: not done yet
    failed        bigint      NOT NULL DEFAULT 0,
    in_doubt      bigint      NOT NULL DEFAULT 0,
    not_ready     bigint      NOT NULL DEFAULT 0,
    visits        integer     NOT NULL DEFAULT 0,
    resent        integer     NOT NULL DEFAULT 0      -- how often in a row the missing were sent again without progress
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX run_active ON oncemore.run (parent_type, parent_entity) WHERE ended_at IS NULL;
CREATE INDEX run_recent ON oncemore.run (started_at);

CREATE TABLE oncemore.run_pack (
    run      bigint  NOT NULL,
    pack     integer NOT NULL,
    entities text[]  NOT NULL,
    PRIMARY KEY (run, pack)
);

-- Numbers the items of a plan, to pack them: cheaper than a window over all of them. Gaps are harmless.
CREATE SEQUENCE oncemore.plan_item CACHE 1000;

-- The Postgres queue. A message is ready (lock NULL), delayed (0) or held (the number of the receive
-- that took it).
CREATE SEQUENCE oncemore.message_lock;
CREATE TABLE oncemore.message (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    visible_at timestamptz NOT NULL DEFAULT clock_timestamp(), -- held or delayed until then
    lock       bigint,
    run        bigint,
    epoch      bigint,
    pack       integer,
    received   integer     NOT NULL DEFAULT 0,
    priority   smallint    NOT NULL DEFAULT 0,
    deferred   smallint    NOT NULL DEFAULT 0,
    queue      text COLLATE "C" NOT NULL,
    type       text COLLATE "C" NOT NULL,
    trace      text,
    entities   text[]      NOT NULL,
    args       text[]      NOT NULL
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 20000
);
-- The minus lets one row comparison, (-priority, id) >= (mark), start a claim in the middle, and keeps
-- the planner from walking the primary key instead, which also holds what is held and delayed.
CREATE INDEX message_ready ON oncemore.message (queue, (-priority), id) WHERE lock IS NULL;
CREATE INDEX message_run ON oncemore.message (run) WHERE run IS NOT NULL;
CREATE INDEX message_delayed ON oncemore.message (queue, visible_at) WHERE lock = 0;

-- One row per receive that may still hold messages. It is what finds messages whose holder died: an
-- index on the messages themselves cost about an eighth of the server's time for each. A message that is held and named
-- by no row here would never be delivered again: a row goes only when no message has its lock any more.
CREATE TABLE oncemore.message_receive (
    lock     bigint PRIMARY KEY,                 -- message.lock of what it took
    check_at timestamptz NOT NULL,               -- not before: nothing of it can lapse earlier
    queue    text COLLATE "C" NOT NULL,
    ids      bigint[]    NOT NULL                -- message.id of all that it may still hold
) WITH (
    autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 20000
);
CREATE INDEX message_receive_check ON oncemore.message_receive (queue, check_at);

-- Packs are compressed where that is quick; a server built without lz4 keeps its default.
-- +goose StatementBegin
DO $$
BEGIN
    ALTER TABLE oncemore.message ALTER entities SET COMPRESSION lz4, ALTER args SET COMPRESSION lz4;
    ALTER TABLE oncemore.run_pack ALTER entities SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL;
END $$;
-- +goose StatementEnd
