"""Runs that take longer than they may (`runs.overdue_at`, see `timelimits`): the sweeper pauses them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import structlog

from perdure.engine import control, events, threads
from perdure.engine.db import jsonb
from perdure.engine.errors import ThreadNotFound
from perdure.engine.tracing import rows as traces

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

OVERDUE = """
SELECT thread_id, run_id, max_seconds FROM runs
 WHERE overdue_at <= now() AND status IN ('pending', 'running', 'suspended') AND cancelling IS NULL
 ORDER BY overdue_at LIMIT 100
"""

# undos are not cut short; and who was resumed since it was seen has all its time again
PAUSE = """
UPDATE runs SET status = 'paused', ready_at = NULL, worker_id = NULL, lease_until = NULL, error = %(error)s,
                updated_at = now()
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
   AND overdue_at <= now() AND status IN ('pending', 'running', 'suspended') AND cancelling IS NULL
RETURNING graph_id
"""


async def pause_all(engine: Engine) -> int:
    """Pause every run whose time is over; returns how many.

    Ownership is taken away first, the worker learns of it afterwards. Any number of processes may do
    so at once; each run is paused once.
    """
    async with engine.pool.connection() as conn:
        due = await (await conn.execute(OVERDUE)).fetchall()
    count = 0
    for row in due:
        try:
            count += await _pause(engine, row["thread_id"], row["run_id"], row["max_seconds"])
        except ThreadNotFound:
            continue  # deleted just now
        except psycopg.Error as exc:
            log.warning(
                "overdue run not paused, will be tried again", run_id=str(row["run_id"]), error=str(exc).strip()
            )
    return count


async def _pause(engine: Engine, thread_id: UUID, run_id: UUID, seconds: float) -> bool:
    message = f"The run took longer than its max_duration of {seconds:g} s; resume it to give it that time again"
    error = {"error": "MaxDuration", "message": message}
    keys = {"thread_id": thread_id, "run_id": run_id}
    async with engine.pool.connection() as conn, conn.transaction():
        await threads.lock(conn, thread_id)
        held = await traces.held(conn, thread_id, run_id)
        paused = await (await conn.execute(PAUSE, {**keys, "error": jsonb(error)})).fetchone()
        if paused is None:
            return False
        traces.released(conn, held, "paused")
        await conn.execute(control.TAKE_AWAY, keys)
        await conn.execute(threads.CANCEL_NOTICE, {"run_id": str(run_id)})
        last = {"event": "paused", "graph_name": paused["graph_id"], "error": message, "final": True}
        frames = [events.Frame.of("error", error), events.Frame.of("lifecycle", last)]
        await events.append(conn, thread_id, run_id, frames)
    log.warning("paused", run_id=str(run_id), thread_id=str(thread_id), error=error["error"], seconds=seconds)
    return True
