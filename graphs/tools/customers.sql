-- The customers of the pattern `support`: a row is one customer. Written by nobody but this script; may run again.
--
-- In perdure's own database it runs by itself. For a database of your own:
--     psql "$ADMIN_URL" -f graphs/tools/customers.sql
--     psql "$ADMIN_URL" -c "ALTER ROLE perdure_support_reader LOGIN PASSWORD '...'"
-- and give SUPPORT_DATABASE_URL that role.

CREATE SCHEMA IF NOT EXISTS support;

CREATE TABLE IF NOT EXISTS support.customers (
    user_id text PRIMARY KEY,
    name    text NOT NULL,
    plan    text NOT NULL,
    since   date NOT NULL
);

INSERT INTO support.customers (user_id, name, plan, since)
VALUES ('user_12345', 'Ada Example', 'Pro', '2023-04-01'),
       ('user_67890', 'Carl Example', 'Free', '2024-11-15')
ON CONFLICT DO NOTHING;

-- The role in which the tool reads: it may see this table and nothing else.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'perdure_support_reader') THEN
        CREATE ROLE perdure_support_reader NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, 'perdure_support_reader', 'MEMBER') THEN
        GRANT perdure_support_reader TO CURRENT_USER;
    END IF;
END
$$;

GRANT USAGE ON SCHEMA support TO perdure_support_reader;
GRANT SELECT ON support.customers TO perdure_support_reader;
