"""Table `steps`: a row is a call of a step, or of another word that is journaled.

`perdure.engine.journal` decides what is written: most rows by way of `perdure.engine.groupcommit`, those of
a step with a transaction of its own here.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from perdure.engine.db import Conn
from perdure.engine.errors import LeaseLost

LOAD = """
SELECT name, identity, n, call, keyed, status, value_type, value, error, attempts, next_at, overlapped
  FROM steps WHERE thread_id = %(thread_id)s AND scope = %(scope)s
"""


async def load(conn: Conn, thread_id: UUID, scope: str) -> list[dict[str, Any]]:
    """Every call that a LangGraph task has recorded, in whatever attempt."""
    return await (await conn.execute(LOAD, {"thread_id": thread_id, "scope": scope})).fetchall()


SAVE = """
WITH held AS (
    SELECT thread_id FROM threads WHERE thread_id = %(thread_id)s AND fence = %(fence)s FOR SHARE
)
INSERT INTO steps (thread_id, scope, name, identity, n, call, run_id, keyed, status, value_type, value, attempts,
                   overlapped)
SELECT thread_id, %(scope)s, %(name)s, %(identity)s, %(n)s, %(call)s, %(run_id)s, %(keyed)s, 'done', %(type)s,
       %(value)s, %(attempts)s, %(overlapped)s
  FROM held
ON CONFLICT (thread_id, scope, name, identity, n)
DO UPDATE SET status = 'done', value_type = excluded.value_type, value = excluded.value,
              attempts = excluded.attempts, error = NULL, next_at = NULL, updated_at = now()
RETURNING status
"""


async def save(conn: Conn, row: dict[str, Any]) -> None:
    """Record a call as done, in the caller's transaction. Raises LeaseLost if the fence is stale."""
    if await (await conn.execute(SAVE, row)).fetchone() is None:
        raise LeaseLost("The run has another owner")


OF_RUN = """
SELECT scope, name, identity, n, call, keyed, status, error, attempts, next_at, created_at, updated_at, value_type,
       CASE WHEN length(value) <= %(max_bytes)s THEN value END AS value
  FROM steps
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
   AND NOT (keyed AND name IN ('outcome', 'cancel') AND identity ~ %(run_ids)s)
 ORDER BY coalesce((attempts->0->>'started_at')::timestamptz, created_at), scope, call, name, identity, n
 LIMIT %(limit)s
"""
RUN_ID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


async def of_run(conn: Conn, thread_id: UUID, run_id: UUID, *, limit: int, max_bytes: int) -> list[dict[str, Any]]:
    """The rows of a run in the order in which they began; values of more than `max_bytes` are left out.

    What is recorded about child runs after their start is not among them, see `of_children`.
    """
    params = {"thread_id": thread_id, "run_id": run_id, "limit": limit, "max_bytes": max_bytes, "run_ids": RUN_ID}
    return await (await conn.execute(OF_RUN, params)).fetchall()


OF_CHILDREN = """
SELECT scope, name, identity, status, error, created_at FROM steps
 WHERE thread_id = %(thread_id)s AND scope = ANY(%(scopes)s) AND name IN ('outcome', 'cancel') AND keyed
   AND identity = ANY(%(run_ids)s)
"""


async def of_children(conn: Conn, thread_id: UUID, children: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What was recorded of these children, each (scope, run id): its `outcome`, and that it was told to `cancel`."""
    params = {"scopes": [scope for scope, _ in children], "run_ids": [run_id for _, run_id in children]}
    return await (await conn.execute(OF_CHILDREN, {"thread_id": thread_id, **params})).fetchall()
