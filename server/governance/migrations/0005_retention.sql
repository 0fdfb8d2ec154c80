-- The last row of some kind is found without reading the chain.
CREATE INDEX audit_event_action ON audit_event (action, seq);

-- Sums whose keys go one day are found among those that have none.
CREATE INDEX usage_bucket_with_key ON usage_bucket (hour) WHERE api_key <> '';

-- Days whose sums stay without keys when their rows are deleted, each with a digest over its sums.
CREATE TABLE kept_day (
    day BIGINT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL
);
