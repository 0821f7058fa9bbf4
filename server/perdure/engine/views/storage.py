"""How much the values of a thread take up in the database, in bytes as PostgreSQL stores them (compressed)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from perdure.engine.errors import ThreadNotFound

if TYPE_CHECKING:
    from perdure.engine.core import Engine

# by column: the size of a whole row would be that of what is unpacked, and unpack it
SIZES = """
SELECT (SELECT coalesce(sum(pg_column_size(checkpoint) + pg_column_size(metadata)), 0) FROM checkpoints
         WHERE thread_id = %(thread)s)::bigint AS checkpoints,
       (SELECT coalesce(sum(pg_column_size(blob)), 0) FROM checkpoint_blobs
         WHERE thread_id = %(thread)s)::bigint AS blobs,
       (SELECT coalesce(sum(pg_column_size(blob)), 0) FROM checkpoint_writes
         WHERE thread_id = %(thread)s)::bigint AS writes,
       (SELECT coalesce(sum(pg_column_size(data)), 0) FROM run_events
         WHERE thread_id = %(thread_id)s)::bigint AS events,
       (SELECT coalesce(sum(coalesce(pg_column_size(value), 0) + pg_column_size(attempts)), 0) FROM steps
         WHERE thread_id = %(thread_id)s)::bigint AS steps
  FROM threads WHERE thread_id = %(thread_id)s
"""


async def storage(engine: Engine, thread_id: UUID) -> dict[str, Any]:
    """`{thread_id, checkpoints, blobs, writes, events, steps, total}`, all but the first in bytes.

    Without keys, times and indexes. Raises ThreadNotFound.
    """
    async with engine.pool.connection() as conn:
        cursor = await conn.execute(SIZES, {"thread": str(thread_id), "thread_id": thread_id})
        sizes = await cursor.fetchone()
    if sizes is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return {"thread_id": thread_id, **sizes, "total": sum(sizes.values())}
