-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- What operators did, for good: each row is committed together with what it tells of.
CREATE TABLE oncemore.audit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    entities bigint      NOT NULL,               -- how many were changed
    actor    text        NOT NULL,
    action   text        NOT NULL,               -- resolve | retry | resend | drop | enqueue
    job_type text        NOT NULL DEFAULT '',    -- its name; empty: of several
    sample   text[]      NOT NULL DEFAULT '{}',  -- the first ten of them
    reason   text        NOT NULL DEFAULT '',    -- in the actor's words
    detail   text        NOT NULL DEFAULT ''
);
CREATE INDEX audit_job_type ON oncemore.audit (job_type, id);

-- +goose StatementBegin
CREATE FUNCTION oncemore.keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'oncemore.audit is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd
CREATE TRIGGER keep_audit BEFORE UPDATE OR DELETE OR TRUNCATE ON oncemore.audit
    FOR EACH STATEMENT EXECUTE FUNCTION oncemore.keep_audit();
