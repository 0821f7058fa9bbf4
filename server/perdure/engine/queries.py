"""Queries to run again: those that somebody has saved (table `saved_queries`), and some that come along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.engine.errors import InvalidInput, QueryNotFound
from perdure.engine.views.reading import MAX_SQL

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_NAME = 100
MAX_SAVED = 500

BUILTIN = {
    "Slowest steps of the last hour": """
SELECT r.graph_id AS agent, s.name, (a.attempt ->> 'seconds')::float8 AS seconds, s.status, s.thread_id, s.run_id
  FROM runs r JOIN steps s ON s.thread_id = r.thread_id AND s.run_id = r.run_id
 CROSS JOIN LATERAL jsonb_array_elements(s.attempts) AS a(attempt)
 WHERE r.ended_at > now() - interval '1 hour'
 ORDER BY seconds DESC NULLS LAST LIMIT 50""",
    "Runs with most attempts, of the last day": """
SELECT graph_id AS agent, status, attempt, failures, error ->> 'error' AS error, created_at, thread_id, run_id
  FROM runs WHERE status IN ('pending', 'running', 'suspended', 'paused') OR ended_at > now() - interval '1 day'
 ORDER BY attempt DESC LIMIT 50""",
    "Errors of the last day, by agent and kind": """
SELECT graph_id AS agent, error ->> 'error' AS error, count(*) AS runs, max(created_at) AS last
  FROM runs WHERE status = 'error' AND created_at > now() - interval '1 day'
 GROUP BY 1, 2 ORDER BY runs DESC LIMIT 50""",
    "Waiting questions": """
SELECT graph_id AS agent, question, created_at, deadline, now() - created_at AS waits, thread_id, run_id
  FROM interrupts WHERE status = 'open' ORDER BY created_at DESC LIMIT 100""",
    "Tokens by model, of the last day": """
SELECT n.model, sum((n.used ->> 'calls')::bigint) AS calls, sum((n.used ->> 'input_tokens')::bigint) AS input_tokens,
       sum((n.used ->> 'output_tokens')::bigint) AS output_tokens
  FROM steps s CROSS JOIN LATERAL jsonb_array_elements(s.attempts) AS a(attempt)
 CROSS JOIN LATERAL jsonb_each(a.attempt -> 'model' -> 'names') AS n(model, used)
 WHERE s.attempts @? '$[*].model' AND s.updated_at > now() - interval '1 day'
 GROUP BY 1 ORDER BY output_tokens DESC""",
    "Threads by size, of those touched last": """
SELECT t.thread_id, t.status, t.updated_at, c.checkpoints, pg_size_pretty(c.bytes) AS size
  FROM (SELECT * FROM threads ORDER BY updated_at DESC LIMIT 500) t
 CROSS JOIN LATERAL (SELECT count(*) AS checkpoints, sum(pg_column_size(k.checkpoint)) AS bytes
                       FROM checkpoints k WHERE k.thread_id = t.thread_id::text) c
 ORDER BY c.bytes DESC NULLS LAST LIMIT 50""",
    "Size of the tables": """
SELECT relname AS "table", pg_size_pretty(pg_total_relation_size(oid)) AS size, reltuples::bigint AS rows_estimated
  FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
 ORDER BY pg_total_relation_size(oid) DESC""",
}

LIST = "SELECT name, sql, created_at FROM saved_queries ORDER BY name LIMIT %(limit)s"


async def saved(engine: Engine) -> list[dict[str, Any]]:
    """All of them as {name, sql, created_at, builtin}, those that come along first."""
    given = [{"name": name, "sql": text.strip(), "created_at": None, "builtin": True} for name, text in BUILTIN.items()]
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(LIST, {"limit": MAX_SAVED})).fetchall()
    return [*given, *({**row, "builtin": False} for row in rows)]


SAVE = """
INSERT INTO saved_queries (name, sql)
SELECT %(name)s, %(sql)s
 WHERE EXISTS (SELECT 1 FROM saved_queries WHERE name = %(name)s)
    OR (SELECT count(*) FROM saved_queries) < %(most)s
ON CONFLICT (name) DO UPDATE SET sql = excluded.sql, created_at = now()
RETURNING name, sql, created_at
"""


async def save(engine: Engine, name: str, text: str) -> dict[str, Any]:
    """Keep a query under a name, in place of the one that has it. It is not executed.

    Raises InvalidInput for a name or a query that is empty, too long or comes along, and beyond `MAX_SAVED`.
    """
    name, text = name.strip(), text.strip()
    if not 0 < len(name) <= MAX_NAME or "\x00" in name:
        raise InvalidInput("name", f"must have 1 to {MAX_NAME} characters")
    if name in BUILTIN:
        raise InvalidInput("name", f"{name!r} is a query that comes along; choose another name")
    if not 0 < len(text) <= MAX_SQL or "\x00" in text:
        raise InvalidInput("sql", f"must have 1 to {MAX_SQL} characters")
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(SAVE, {"name": name, "sql": text, "most": MAX_SAVED})).fetchone()
    if row is None:
        raise InvalidInput("name", f"there are {MAX_SAVED} saved queries already; delete one first")
    return {**row, "builtin": False}


FORGET = "DELETE FROM saved_queries WHERE name = %(name)s RETURNING name"


async def forget(engine: Engine, name: str) -> None:
    """Delete a saved query. Raises QueryNotFound, and InvalidInput for one that comes along."""
    if name in BUILTIN:
        raise InvalidInput("name", f"{name!r} comes along and cannot be deleted")
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(FORGET, {"name": name})).fetchone()
    if row is None:
        raise QueryNotFound(f"No query is saved as {name!r}")
