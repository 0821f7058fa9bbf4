"""Fleet-wide limits: how many calls of a name run at the same time (`limit_places`, `limit_waiters`).

A place counts only while its thread has the fence under which it was taken, so a worker that
dies holds nothing. A freed place wakes the run that has waited longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from perdure.engine.db import Conn, Pool
from perdure.engine.errors import LeaseLost
from perdure.engine.wake import wake

if TYPE_CHECKING:
    from perdure.engine.queue import Claimed

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('perdure limit ' || %(name)s, 0))"

HELD = "SELECT 1 FROM threads WHERE thread_id = %(thread_id)s AND fence = %(fence)s FOR SHARE"

STALE = """
DELETE FROM limit_places p USING threads t
 WHERE p.name = %(name)s AND t.thread_id = p.thread_id AND t.fence <> p.fence
"""

TAKE = """
INSERT INTO limit_places (name, thread_id, run_id, fence, place)
SELECT %(name)s, %(thread_id)s, %(run_id)s, %(fence)s, %(place)s
 WHERE (SELECT count(*) FROM limit_places WHERE name = %(name)s) < %(n)s
ON CONFLICT (name, thread_id, place) DO UPDATE SET fence = excluded.fence
RETURNING place
"""

QUEUE_UP = """
INSERT INTO limit_waiters (name, thread_id, run_id) VALUES (%(name)s, %(thread_id)s, %(run_id)s)
ON CONFLICT DO NOTHING
"""
LEAVE_QUEUE = "DELETE FROM limit_waiters WHERE name = %(name)s AND thread_id = %(thread_id)s AND run_id = %(run_id)s"


async def acquire(pool: Pool, run: Claimed, name: str, n: int, place: str) -> bool:
    """Take one of `n` places; False: all are taken, and the run will be woken when one is free.

    Raises LeaseLost.
    """
    keys = {"name": name, "thread_id": run.thread_id, "run_id": run.run_id, "fence": run.fence}
    async with pool.connection() as conn, conn.transaction():
        await conn.execute(LOCK, {"name": name})
        if await (await conn.execute(HELD, keys)).fetchone() is None:
            raise LeaseLost(f"Run {run.run_id} has another owner")
        await conn.execute(STALE, {"name": name})
        taken = await (await conn.execute(TAKE, {**keys, "n": n, "place": place})).fetchone()
        await conn.execute(LEAVE_QUEUE if taken else QUEUE_UP, keys)
        return taken is not None


RELEASE = "DELETE FROM limit_places WHERE name = %(name)s AND thread_id = %(thread_id)s AND place = %(place)s"
NEXT = """
DELETE FROM limit_waiters WHERE (name, thread_id, run_id) IN (
    SELECT w.name, w.thread_id, w.run_id FROM limit_waiters w
     WHERE w.name = %(name)s ORDER BY w.waiter_no LIMIT 1)
RETURNING thread_id, run_id
"""


async def release(pool: Pool, run: Claimed, name: str, place: str) -> None:
    """Give a place back and wake the run that has waited longest."""
    async with pool.connection() as conn, conn.transaction():
        await conn.execute(LOCK, {"name": name})
        await conn.execute(RELEASE, {"name": name, "thread_id": run.thread_id, "place": place})
        await _wake_next(conn, name)


async def _wake_next(conn: Conn, name: str) -> None:
    row = await (await conn.execute(NEXT, {"name": name})).fetchone()
    if row:
        thread_id: UUID = row["thread_id"]
        await wake(conn, thread_id, row["run_id"])
