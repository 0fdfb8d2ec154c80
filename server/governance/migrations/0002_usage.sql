-- What was used: one row for each request that asked a model, in batches whose hashes make a chain of their own.

CREATE TABLE usage_event (
    seq BIGINT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    began_ms BIGINT NOT NULL,
    project TEXT NOT NULL,
    api_key TEXT NOT NULL,
    -- As answers name it; empty where a request was refused before there was one.
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    output BIGINT NOT NULL,
    -- Milliseconds to the first token, where there was one, and to the end.
    first_ms BIGINT,
    duration_ms BIGINT NOT NULL,
    status BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    -- Billionths of the currency that the company has set.
    cost_nano BIGINT NOT NULL
);

CREATE INDEX usage_event_began ON usage_event (began_ms);

-- What was written at one time. The rows' digest stays when they themselves are deleted, and so does the chain.
CREATE TABLE usage_batch (
    seq BIGINT NOT NULL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    first_row BIGINT NOT NULL,
    last_row BIGINT NOT NULL,
    digest TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
);

-- Sums by the hour in which requests began.
CREATE TABLE usage_bucket (
    hour BIGINT NOT NULL,
    project TEXT NOT NULL,
    api_key TEXT NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    requests BIGINT NOT NULL,
    -- Requests that were not taken; they are none of those.
    refused BIGINT NOT NULL,
    input BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    output BIGINT NOT NULL,
    cost_nano BIGINT NOT NULL,
    PRIMARY KEY (hour, project, api_key, model, endpoint)
);

-- What holds for all rows there are, such as the currency of costs.
CREATE TABLE setting (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
