-- Who may do what, and how often.

-- For whom a run acts: {user, owns, threads, assistants}, see engine/access.py; NULL: nobody was asked
-- who they are. Written with the row, not shown to clients.
ALTER TABLE runs ADD COLUMN actor jsonb;
ALTER TABLE crons ADD COLUMN actor jsonb;

-- A key of the built-in authentication. Written by `perdure keys`; it stays after it was revoked, so
-- that one can see whose it was.
CREATE TABLE api_keys (
    key_id       uuid PRIMARY KEY,
    -- sha256 of the key. A key is 256 random bits, not a word that people choose: it cannot be
    -- guessed from its hash, however quick the hash is.
    hash         bytea NOT NULL UNIQUE,
    hint         text NOT NULL,          -- how the key begins, to recognise it
    name         text NOT NULL,
    owner        text NOT NULL,          -- the identity of whoever sends it
    rate_limit   integer CHECK (rate_limit > 0),  -- requests a minute; NULL: PERDURE_RATE_LIMIT_PER_MINUTE
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz             -- to the minute
);

-- A caller's token bucket: how many requests it may make at once. Written with every request of a
-- caller that has a limit; after a crash all buckets are full, so it needs no log. Goes when it
-- has not been used for an hour.
CREATE UNLOGGED TABLE rate_limits (
    caller    text PRIMARY KEY,
    tokens    float8 NOT NULL,
    granted   boolean NOT NULL,          -- whether the last request was let through
    filled_at timestamptz NOT NULL
);
