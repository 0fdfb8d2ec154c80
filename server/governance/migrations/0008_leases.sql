-- What several servers on one database have used of limits together, and what each of them may use of them for a few seconds. Both are
-- made anew from rows of usage where they are missing, and are in no copy.

CREATE TABLE limit_count (
    -- As in `limit_rule`.
    subject TEXT NOT NULL,
    id TEXT NOT NULL,
    metric TEXT NOT NULL,
    -- The day since 1970 or the month since year 0; 0 of what is counted by neither.
    span BIGINT NOT NULL,
    -- Tokens of rows; of what comes back by the minute what is there, a unit in as many parts as a minute has milliseconds, at a time.
    value BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (subject, id, metric, span)
);

CREATE TABLE limit_lease (
    subject TEXT NOT NULL,
    id TEXT NOT NULL,
    metric TEXT NOT NULL,
    span BIGINT NOT NULL,
    -- One that was started anew is another one.
    server TEXT NOT NULL,
    held BIGINT NOT NULL,
    -- By the database's clock; from then on nobody holds it.
    until_ms BIGINT NOT NULL,
    PRIMARY KEY (subject, id, metric, span, server)
);
