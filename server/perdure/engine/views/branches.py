"""How the checkpoints of a thread grew out of each other: ids and parents, without what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_OUTLINE = 2_000  # checkpoints; 1 ms for 1,000 of them

OUTLINE = """
SELECT checkpoint_id, parent_checkpoint_id FROM checkpoints
 WHERE thread_id = %(thread)s AND checkpoint_ns = '' ORDER BY checkpoint_id DESC LIMIT %(limit)s
"""


async def outline(engine: Engine, thread_id: UUID, *, limit: int = MAX_OUTLINE) -> list[tuple[str, str | None]]:
    """(checkpoint, its parent) of a thread's own graph, newest first: the first one is the head, from which runs go on.

    The newest `limit` only; empty for a thread that is not there.
    """
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(OUTLINE, {"thread": str(thread_id), "limit": limit})).fetchall()
    return [(row["checkpoint_id"], row["parent_checkpoint_id"]) for row in rows]
