-- People, and programs that act for a project. What names a person is sealed with a secret that is not in the database; all other
-- tables name them by identifiers, so that whoever is erased here is nobody there.

CREATE TABLE person (
    id TEXT NOT NULL PRIMARY KEY,
    -- A keyed hash of the address, by which they are found.
    mark TEXT NOT NULL UNIQUE,
    -- Address and name.
    sealed TEXT NOT NULL,
    role TEXT NOT NULL,
    created BIGINT NOT NULL,
    -- When they left: their keys were revoked then.
    ended BIGINT
);

-- The projects that a person may have keys of.
CREATE TABLE member (
    person TEXT NOT NULL REFERENCES person (id),
    project TEXT NOT NULL REFERENCES project (id),
    created BIGINT NOT NULL,
    PRIMARY KEY (person, project)
);

CREATE TABLE service_account (
    id TEXT NOT NULL PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (id),
    name TEXT NOT NULL,
    created BIGINT NOT NULL,
    ended BIGINT
);

-- Whose a key is: a person's or a service account's identifier, where it is anybody's.
ALTER TABLE api_key ADD COLUMN owner TEXT;

CREATE INDEX api_key_owner ON api_key (owner);
CREATE INDEX audit_event_at ON audit_event (at_ms);
