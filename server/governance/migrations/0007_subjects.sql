-- Who a person is at the company's login: bound by the first good token of their address, so that nobody comes after them who is
-- given the same address there.

CREATE TABLE subject (
    -- A keyed hash of issuer and subject, by which they are found.
    mark TEXT NOT NULL PRIMARY KEY,
    person TEXT NOT NULL UNIQUE REFERENCES person (id),
    -- Issuer and subject.
    sealed TEXT NOT NULL,
    created BIGINT NOT NULL
);
