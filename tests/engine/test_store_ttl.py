"""How long items of the store live, in databases of every age."""

import psycopg

from perdure.engine.db import migrate


def test_an_older_database_learns_fractions_of_minutes_and_keeps_its_items(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("ALTER TABLE store ALTER COLUMN ttl_minutes TYPE int")
        conn.execute("INSERT INTO store (prefix, key, value, ttl_minutes) VALUES ('a', 'k', '{}', 3)")
        for _ in range(2):
            assert migrate(dsn) == []
            row = conn.execute("SELECT ttl_minutes, pg_typeof(ttl_minutes)::text FROM store").fetchone()
            assert row == (3, "numeric")
