-- What was asked and answered in projects that have it recorded, sealed for a reader whose key is not here. That something is recorded
-- is said in the audit chain alone.

CREATE TABLE content (
    -- The request's identifier, as in its row of usage.
    request TEXT NOT NULL PRIMARY KEY,
    project TEXT NOT NULL,
    api_key TEXT NOT NULL,
    -- When it began, and when this is deleted, Unix milliseconds.
    began_ms BIGINT NOT NULL,
    due_ms BIGINT NOT NULL,
    -- The row of the audit chain that says that it is recorded.
    announced BIGINT NOT NULL,
    -- A keyed hash of the prompt; empty where none is kept.
    fingerprint TEXT NOT NULL,
    -- Whose key opens the two messages; all empty where it is not kept.
    reader TEXT NOT NULL,
    asked TEXT NOT NULL,
    answered TEXT NOT NULL,
    -- Of both messages together.
    bytes BIGINT NOT NULL
);

CREATE INDEX content_project ON content (project, began_ms, request);
CREATE INDEX content_key ON content (api_key);
CREATE INDEX content_due ON content (due_ms);
CREATE INDEX content_fingerprint ON content (fingerprint) WHERE fingerprint <> '';

-- When the record of a request is due, which row says that it is recorded, and its hash, which are in the chain of usage so; empty
-- where there is none.
ALTER TABLE usage_event ADD COLUMN content TEXT NOT NULL DEFAULT '';

CREATE INDEX usage_event_content ON usage_event (seq) WHERE content <> '';
