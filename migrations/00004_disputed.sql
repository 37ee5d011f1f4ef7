-- +goose Up
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '3s';

-- Late successes are few among many attempts, and each of them is for somebody to look at: this finds
-- them without reading all. Other attempts pay nothing for it but the comparison.
CREATE INDEX attempt_disputed ON oncemore.attempt (at, job_type, entity) WHERE outcome = 'disputed';
