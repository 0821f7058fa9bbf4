-- A secret that the servers of one database share because nobody has set it: made by the first
-- that needs it, never changed. Deleting the row makes everything invalid that was signed with it.
CREATE TABLE secrets (
    name       text PRIMARY KEY,
    value      bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
