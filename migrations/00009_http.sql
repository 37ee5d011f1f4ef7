-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- What a request with a key was answered, beside the fact that it was done, committed together with
-- it. It may go when it has expired: the fact stays, and says that the request is not to be done again.
CREATE TABLE oncemore.response (
    expires_at timestamptz NOT NULL,
    epoch      bigint      NOT NULL,             -- of the fact that it belongs to
    job_type   integer     NOT NULL,
    status     smallint    NOT NULL,
    entity     text COLLATE "C" NOT NULL,
    headers    bytea[]     NOT NULL,             -- name, value, name, value; those that may be shown again
    body       bytea       NOT NULL,
    PRIMARY KEY (job_type, entity)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX response_expires_at ON oncemore.response (expires_at);

-- Bodies are compressed where that is quick; a server built without lz4 keeps its default.
-- +goose StatementBegin
DO $$
BEGIN
    ALTER TABLE oncemore.response ALTER body SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL;
END $$;
-- +goose StatementEnd
