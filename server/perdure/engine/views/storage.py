"""How much a thread takes up in the database, in bytes as PostgreSQL stores them (compressed)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from perdure.engine.errors import ThreadNotFound

if TYPE_CHECKING:
    from perdure.engine.core import Engine

SIZES = """
SELECT (SELECT coalesce(sum(pg_column_size(c.*)), 0) FROM checkpoints c
         WHERE c.thread_id = %(thread)s)::bigint AS checkpoints,
       (SELECT coalesce(sum(pg_column_size(b.*)), 0) FROM checkpoint_blobs b
         WHERE b.thread_id = %(thread)s)::bigint AS blobs,
       (SELECT coalesce(sum(pg_column_size(w.*)), 0) FROM checkpoint_writes w
         WHERE w.thread_id = %(thread)s)::bigint AS writes,
       (SELECT coalesce(sum(pg_column_size(e.*)), 0) FROM run_events e
         WHERE e.thread_id = %(thread_id)s)::bigint AS events,
       (SELECT coalesce(sum(pg_column_size(s.*)), 0) FROM steps s
         WHERE s.thread_id = %(thread_id)s)::bigint AS steps
  FROM threads WHERE thread_id = %(thread_id)s
"""


async def storage(engine: Engine, thread_id: UUID) -> dict[str, Any]:
    """`{thread_id, checkpoints, blobs, writes, events, steps, total}`, all but the first in bytes.

    Without what indexes take. Raises ThreadNotFound.
    """
    async with engine.pool.connection() as conn:
        cursor = await conn.execute(SIZES, {"thread": str(thread_id), "thread_id": thread_id})
        sizes = await cursor.fetchone()
    if sizes is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return {"thread_id": thread_id, **sizes, "total": sum(sizes.values())}
