-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- What is to be called again by the clock. A schedule is its row: any process may tick it, by
-- locking the row, and whatever a tick starts is committed together with the move of the cursor.
CREATE TABLE oncemore.schedule (
    name         text COLLATE "C" PRIMARY KEY,
    spec         text        NOT NULL,
    zone         text        NOT NULL DEFAULT 'UTC',
    job_type     text COLLATE "C" NOT NULL,          -- a name of it
    entity       text COLLATE "C",                   -- a tick enqueues the job for this entity, with
    args         text,                               -- these arguments; {tick} and {date} stand for the tick's
    rerun        text,                               -- or it asks for this re-run of the type, as JSON
    catch_up     text        NOT NULL DEFAULT 'latest', -- none | latest | all: of the ticks that were missed
    catch_up_most integer    NOT NULL DEFAULT 100,   -- of them, and as many may wait
    max_age      interval    NOT NULL DEFAULT '0',   -- a tick that has not started by then is missed; 0: any age
    jitter       interval    NOT NULL DEFAULT '0',   -- delays a start by up to so much
    overlap      text        NOT NULL DEFAULT 'skip', -- skip | queue: a tick while what the last one started goes on
    from_code    boolean     NOT NULL DEFAULT false, -- it is declared by programs, and not ticked when none of them does so any more
    declared_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    paused       text,                               -- why; NULL: it is not
    error        text,                               -- why it is not ticked; looked at again each minute
    cursor       timestamptz NOT NULL DEFAULT clock_timestamp() CHECK (isfinite(cursor)), -- every tick until here is decided
    last_started timestamptz,                        -- the tick that was started last
    next_at      timestamptz NOT NULL DEFAULT '-infinity' -- nothing is to be done before
) WITH (fillfactor = 50);

-- The times of another spec, and those that passed in a pause, are not to be caught up. This
-- holds for whoever writes, so that a row can be changed by hand.
-- +goose StatementBegin
CREATE FUNCTION oncemore.reset_schedule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.cursor = OLD.cursor THEN
        NEW.cursor := clock_timestamp();
    END IF;
    NEW.error := NULL;
    NEW.next_at := '-infinity';
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER reset_schedule BEFORE UPDATE ON oncemore.schedule
    FOR EACH ROW WHEN (NEW.spec <> OLD.spec OR NEW.zone <> OLD.zone OR (NEW.paused IS NULL AND OLD.paused IS NOT NULL))
    EXECUTE FUNCTION oncemore.reset_schedule();

-- What became of each tick. The newest of a schedule are kept.
CREATE TABLE oncemore.schedule_tick (
    tick     timestamptz NOT NULL,
    at       timestamptz NOT NULL,                   -- when that was decided
    epoch    bigint,                                 -- of the work that it enqueued; NULL: a fan-out, a re-run, or none
    message  bigint,                                 -- that carried it first
    run      bigint,                                 -- that it opened or joined
    by_hand  boolean     NOT NULL DEFAULT false,     -- somebody asked for it
    schedule text COLLATE "C" NOT NULL,
    outcome  text        NOT NULL,                   -- queued | started | skipped | missed
    detail   text        NOT NULL DEFAULT '',        -- why
    job_type text COLLATE "C",                       -- of what it started
    entity   text COLLATE "C",
    PRIMARY KEY (schedule, tick)
);
CREATE INDEX schedule_tick_queued ON oncemore.schedule_tick (schedule, tick) WHERE outcome = 'queued';

-- Finds the message that has the work of a tick, however often it was sent on: its epoch is its
-- own. Ordinary work has none, and pays nothing.
CREATE INDEX message_forced ON oncemore.message (epoch) WHERE run IS NULL AND epoch IS NOT NULL;
