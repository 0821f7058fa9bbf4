"""Messages to a running run: table `messages`. Steering puts one in, `mailbox()` takes them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import RunFinished, ThreadNotFound
from perdure.engine.wake import wake

if TYPE_CHECKING:
    from perdure.engine.core import Engine

SEND = """
WITH thread AS (SELECT thread_id, run_id FROM threads WHERE thread_id = %(thread_id)s FOR SHARE
), sent AS (
    INSERT INTO messages (thread_id, message)
    SELECT thread_id, %(message)s FROM thread WHERE run_id IS NOT NULL
    RETURNING message_no
)
SELECT thread.run_id, sent.message_no FROM thread LEFT JOIN sent ON true
"""


async def send(engine: Engine, thread_id: UUID, message: Any) -> UUID:
    """Put a message before the run that the thread is executing; returns that run's id.

    Raises ThreadNotFound, and RunFinished when the thread executes nothing.
    """
    async with engine.pool.connection() as conn, conn.transaction():
        params = {"thread_id": thread_id, "message": jsonb(message)}
        row = await (await conn.execute(SEND, params)).fetchone()
        if row is None:
            raise ThreadNotFound(f"Thread with ID {thread_id} not found")
        if row["run_id"] is None:
            raise RunFinished(f"Thread {thread_id} is not executing a run; start one instead")
        await wake(conn, thread_id, row["run_id"])
    return row["run_id"]


TAKE = """
UPDATE messages SET taken_at = now() WHERE thread_id = %(thread_id)s AND taken_at IS NULL
RETURNING message_no, message
"""


async def take(conn: Conn, thread_id: UUID) -> list[Any]:
    """All messages that nobody has taken, oldest first. Part of the caller's transaction."""
    rows = await (await conn.execute(TAKE, {"thread_id": thread_id})).fetchall()
    return [row["message"] for row in sorted(rows, key=lambda row: row["message_no"])]
