"""The queue of one thread as people see it: the run that works, and those that wait behind it, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from perdure.engine.core import Engine

# As `queue` takes them: what has begun, then answers to questions, then the rest as they came.
LINE = """
SELECT r.run_id, r.thread_id, r.graph_id AS agent, r.status, r.attempt, r.priority, r.behind_question, r.created_at,
       r.started_at, r.run_id = t.run_id AS head, CASE WHEN r.ready_at > now() THEN r.ready_at
           WHEN r.available_at > now() THEN r.available_at END AS next_at,
       left(r.error ->> 'error' || ': ' || (r.error ->> 'message'), 300) AS error
  FROM runs r JOIN threads t USING (thread_id)
 WHERE r.thread_id = %(thread_id)s AND r.status IN ('pending', 'running', 'suspended', 'paused')
 ORDER BY (r.run_id = t.run_id) IS TRUE DESC, r.priority DESC, r.queue_no LIMIT %(limit)s
"""


async def line(engine: Engine, thread_id: UUID, *, limit: int = 100) -> list[dict[str, Any]]:
    """The runs of a thread that have not ended, the one that is due first in front; the first `limit` of them.

    `head`: it has begun, and everything else waits for it (None: nothing has). `next_at`: not before then.
    """
    async with engine.pool.connection() as conn:
        return await (await conn.execute(LINE, {"thread_id": thread_id, "limit": limit})).fetchall()
