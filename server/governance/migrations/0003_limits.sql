-- How much a project or a key may use. A row that is not there is no limit.

CREATE TABLE limit_rule (
    -- 'project' or 'api_key', and its identifier.
    subject TEXT NOT NULL,
    id TEXT NOT NULL,
    metric TEXT NOT NULL,
    value BIGINT NOT NULL,
    PRIMARY KEY (subject, id, metric)
);

-- A project's part of the machine where several want it, against the weights of the others.
ALTER TABLE project ADD COLUMN weight BIGINT NOT NULL DEFAULT 1;
