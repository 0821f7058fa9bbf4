"""Children that nobody waits for any more: they are cancelled, and what they ask is withdrawn.

A caller says so itself (`cancel`), or it is found to be cancelled or gone (`cancel_orphans`). A child in the middle
of a saga undoes it first.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from perdure.engine import children, queue, remote, stop, threads
from perdure.engine.errors import EngineError, RunNotFound, ThreadNotFound

if TYPE_CHECKING:
    from perdure.engine.core import Engine
    from perdure.engine.queue import Claimed
    from perdure.engine.stop import Action

log = structlog.get_logger(__name__)

GENERATIONS = 20  # of children of children that one call goes down; the next call does the rest
CANCEL_SECONDS = 5.0  # for one child: reading its state may execute the author's graph factory


async def cancel(engine: Engine, parent: Claimed, child: dict[str, str]) -> None:
    """Cancel a child; one that has ended stays as it is. Raises LeaseLost."""
    if "server" in child:
        await remote.cancel(engine, parent, UUID(child["run_id"]))
    else:
        await abandon(engine, UUID(child["thread_id"]), UUID(child["run_id"]))


async def abandon(engine: Engine, thread_id: UUID, run_id: UUID) -> None:
    """Nobody waits for a child any more: cancel what executes it, and withdraw what it asks.

    May be called any number of times, in any state of the child.
    """
    async with engine.pool.connection() as conn:
        found = await children.last_run(conn, thread_id, run_id)
    if found is None or children.final(found):
        return
    if found["status"] == "success":
        await withdraw(engine, thread_id, found["run_id"])
        return
    with suppress(RunNotFound, ThreadNotFound):  # ended just now
        await stop.cancel(engine, thread_id, found["run_id"])


WITHDRAW = """
UPDATE interrupts SET status = 'superseded'
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND status = 'open'
RETURNING token
"""
UNASKED = """
UPDATE threads SET interrupts = '{}', updated_at = now() WHERE thread_id = %(thread_id)s AND run_id IS NULL
"""


async def withdraw(engine: Engine, thread_id: UUID, run_id: UUID, *, undo: bool = True) -> bool:
    """Close the questions that a run has asked: late answers are refused. One transaction; False: there are none.

    A saga in which they were asked is undone, or (`undo` False) left as it is for good.
    """
    async with engine.pool.connection() as conn, conn.transaction():
        try:
            thread = await threads.lock(conn, thread_id)
        except ThreadNotFound:
            return False
        cursor = await conn.execute(WITHDRAW, {"thread_id": thread_id, "run_id": run_id})
        if not await cursor.fetchall():
            return False
        await conn.execute(UNASKED, {"thread_id": thread_id})
        if not undo:
            await stop.give_up_sagas(conn, thread_id)
        elif thread["run_id"] is None:  # else its owner is another run, which has begun
            await stop.undo_abandoned(conn, thread_id)
        await queue.promote(conn, thread_id)
    return True


# A caller that is gone was rolled back, or deleted with its thread.
ORPHANS = """
SELECT c.thread_id, c.run_id, CASE WHEN p.run_id IS NULL THEN 'rollback' ELSE 'interrupt' END AS action,
       coalesce(p.cancelling = 'kill', false) AS killed
  FROM runs c LEFT JOIN runs p ON p.thread_id = c.parent_thread_id AND p.run_id = c.parent_run_id
 WHERE c.bound AND (c.cancelling IS NULL OR p.cancelling = 'kill')
   AND c.status IN ('pending', 'running', 'suspended', 'paused')
   AND (p.run_id IS NULL OR p.status = 'interrupted' OR p.cancelling IS NOT NULL)
 ORDER BY c.thread_id LIMIT 100
"""
ASKING_ORPHANS = """
SELECT DISTINCT i.thread_id, i.run_id, coalesce(p.cancelling = 'kill', false) AS killed
  FROM interrupts i JOIN runs c ON c.thread_id = i.thread_id AND c.run_id = i.run_id
       LEFT JOIN runs p ON p.thread_id = c.parent_thread_id AND p.run_id = c.parent_run_id
 WHERE i.status = 'open' AND c.bound AND c.status = 'success'
   AND (p.run_id IS NULL OR p.status = 'interrupted' OR p.cancelling IS NOT NULL)
 LIMIT 100
"""


async def cancel_orphans(engine: Engine) -> int:
    """Cancel the children of runs that were cancelled or deleted, each in its own transaction; how many.

    Children of a killed run are killed; those that ask a person ask no more. A crash in the middle
    leaves the rest for the next call; any number of processes may call it.
    """
    count = 0
    for _ in range(GENERATIONS):
        done = await _cancel_generation(engine)
        count += done
        if not done:
            break
    async with engine.pool.connection() as conn:
        asking = await (await conn.execute(ASKING_ORPHANS)).fetchall()
        count += await remote.cancel_orphans(conn)
    for row in asking:
        count += await withdraw(engine, row["thread_id"], row["run_id"], undo=not row["killed"])
    return count


async def _cancel_generation(engine: Engine) -> int:
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(ORPHANS)).fetchall()
    done = 0
    for row in rows:
        action: Action = row["action"]
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await stop.cancel_alone(engine, row["thread_id"], row["run_id"], action, compensate=not row["killed"])
        except (RunNotFound, ThreadNotFound):
            continue  # ended just now
        except (EngineError, TimeoutError) as exc:
            log.warning("child not cancelled, will be tried again", run_id=str(row["run_id"]), error=str(exc))
            continue
        done += 1
    return done
