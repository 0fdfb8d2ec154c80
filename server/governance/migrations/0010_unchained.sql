-- Rows of usage that are written and in no batch yet: an answer waits for its row, and a row alone costs a fourth of one with its
-- batch and its sum. Of a server all rows are chained as they are written, but those that a copy of a file brings.

CREATE TABLE usage_unchained (
    -- The order in which they were written; a file's own order, so that a row costs no index of it.
    seq INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    began_ms BIGINT NOT NULL,
    project TEXT NOT NULL,
    api_key TEXT NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    output BIGINT NOT NULL,
    first_ms BIGINT,
    duration_ms BIGINT NOT NULL,
    status BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    cost_nano BIGINT NOT NULL,
    content TEXT NOT NULL
);
