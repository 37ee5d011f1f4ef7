-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- What a job returned, beside the fact that it is done, committed together with it. It may go when
-- it has expired: the fact stays, and says that the work is not to be done again.
CREATE TABLE oncemore.result (
    stored_at  timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    epoch      bigint      NOT NULL,             -- of the fact that it belongs to; a fact of another one has no result here
    job_type   integer     NOT NULL,
    entity     text COLLATE "C" NOT NULL,
    value      text        NOT NULL,             -- JSON, capped
    PRIMARY KEY (job_type, entity)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX result_expires_at ON oncemore.result (expires_at);

-- Values are compressed where that is quick; a server built without lz4 keeps its default.
-- +goose StatementBegin
DO $$
BEGIN
    ALTER TABLE oncemore.result ALTER value SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL;
END $$;
-- +goose StatementEnd
