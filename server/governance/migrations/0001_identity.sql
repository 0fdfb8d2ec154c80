-- Types that SQLite and PostgreSQL both have: text, and whole numbers of 64 bits. Times are Unix seconds, except where the name
-- says otherwise; identifiers are made by the server.

CREATE TABLE project (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created BIGINT NOT NULL,
    archived BIGINT
);

-- The models that a project may use; all, if there is no row.
CREATE TABLE model_right (
    project TEXT NOT NULL REFERENCES project (id),
    model TEXT NOT NULL,
    PRIMARY KEY (project, model)
);

CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    -- SHA-256 of the secret, in hexadecimal.
    hash TEXT NOT NULL,
    project TEXT NOT NULL REFERENCES project (id),
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT,
    revoked BIGINT
);

-- What was done, each row with a hash over itself and the row before.
CREATE TABLE audit_event (
    seq BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
);
