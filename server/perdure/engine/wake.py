"""Waking: what a run waits for has happened, or there may be something to claim."""

from __future__ import annotations

from uuid import UUID

from perdure.engine.db import Conn

NOTIFY_WORK = "SELECT pg_notify('perdure_work', '')"

WAKE = """
UPDATE runs SET woken = status = 'running', ready_at = CASE WHEN status = 'suspended' THEN now() ELSE ready_at END
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND status IN ('running', 'suspended')
"""


async def wake(conn: Conn, thread_id: UUID, run_id: UUID) -> None:
    """Let a suspended run be claimed, or keep a running one from being suspended.

    Part of the caller's transaction; a run in any other state is left alone.
    """
    await conn.execute(WAKE, {"thread_id": thread_id, "run_id": run_id})
    await conn.execute(NOTIFY_WORK)
