-- What shows that somebody holds a key: its own 'secret', a 'token' of the company's login, which is a person's in one project, or
-- a 'certificate' of the client. The hash is that of the secret, of nothing, or of the certificate's public key.
ALTER TABLE api_key ADD COLUMN kind TEXT NOT NULL DEFAULT 'secret';

CREATE UNIQUE INDEX api_key_token ON api_key (owner, project) WHERE kind = 'token';
CREATE UNIQUE INDEX api_key_certificate ON api_key (hash) WHERE kind = 'certificate' AND revoked IS NULL;
