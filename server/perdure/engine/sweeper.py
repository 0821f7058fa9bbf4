"""The sweeper: what nobody else does in time. Every worker runs it; each thing is done once.

- runs of dead workers: the advisory lock that a worker holds for as long as its connection
  lives can be taken;
- runs whose lease has ended: their worker is cut off, or stuck;
- deadlines of questions that have passed;
- runs that take longer than they may;
- ticks of crons that are due;
- threads whose time is over, events, keys, webhooks and store items that have outlived their use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import structlog

from perdure.engine import (
    idempotency,
    interrupts,
    meters,
    orphans,
    overdue,
    prune,
    queue,
    ratelimit,
    remote,
    store,
    threads,
    ticks,
    webhooks,
)
from perdure.engine.db import Conn

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

# One statement for the whole fleet; the locks that it takes go with it.
DEAD = """
SELECT worker_id, lock_key FROM workers WHERE worker_id <> %(me)s AND pg_try_advisory_xact_lock(lock_key)
"""
TRY_LOCK = "SELECT pg_try_advisory_xact_lock(%(key)s) AS dead"


async def dead_workers(engine: Engine, conn: Conn, me: UUID) -> int:
    """Release the runs of workers that have died; returns how many runs."""
    released = 0
    for other in await (await conn.execute(DEAD, {"me": me})).fetchall():
        async with conn.transaction():
            row = await (await conn.execute(TRY_LOCK, {"key": other["lock_key"]})).fetchone()
            if not row or not row["dead"]:
                continue  # somebody else is at it
            runs = await queue.unregister(conn, other["worker_id"], lost=True, **_policy(engine))
        log.warning("worker died", worker_id=str(other["worker_id"]), runs=len(runs))
        meters.leases_lost.labels("worker died").inc(len(runs))
        released += len(runs)
    return released


ENDED_LEASE = "SELECT 1 FROM runs WHERE status = 'running' AND lease_until < now() LIMIT 1"


async def expired_leases(engine: Engine, conn: Conn) -> int:
    """Release the runs whose worker stopped renewing its lease; returns how many."""
    if await (await conn.execute(ENDED_LEASE)).fetchone() is None:
        return 0
    runs = await queue.release(conn, worker_id=None, lost=True, **_policy(engine))
    if runs:
        meters.leases_lost.labels("lease expired").inc(len(runs))
        log.warning("leases expired", runs=[str(run["run_id"]) for run in runs])
    return len(runs)


def _policy(engine: Engine) -> dict[str, Any]:
    settings = engine.settings
    return {
        "max_attempts": settings.max_attempts,
        "initial": settings.retry_initial_seconds,
        "cap": settings.retry_cap_seconds,
    }


EXPIRED_THREADS = """
SELECT thread_id FROM threads t
 WHERE expires_at < now() AND status <> 'busy'
   AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_id = t.thread_id
                      AND r.status IN ('pending', 'running', 'suspended', 'paused'))
 ORDER BY thread_id LIMIT 200
   FOR UPDATE SKIP LOCKED
"""

# purged in batches, so that the transaction stays short; questions stay as long as their run, for
# readers of the event protocol that come late, and so does what tells of its attempts (`attempts`), if it had several
PURGE = """
WITH due AS (
    DELETE FROM purges WHERE (thread_id, run_id) IN (
        SELECT thread_id, run_id FROM purges WHERE purge_at < now() ORDER BY purge_at LIMIT 500
           FOR UPDATE SKIP LOCKED)
    RETURNING thread_id, run_id
)
DELETE FROM run_events e USING due
 WHERE e.thread_id = due.thread_id AND e.run_id = due.run_id
   AND (split_part(e.event, '|', 1) NOT IN ('input.requested', 'lifecycle')
        OR NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_id = due.thread_id AND r.run_id = due.run_id
                          AND (r.attempt > 1 OR e.event NOT LIKE 'lifecycle%')))
"""


async def expired_threads(conn: Conn) -> int:
    """Delete threads of stateless runs whose time has come, at most 200 a call; returns how many."""
    async with conn.transaction():
        rows = await (await conn.execute(EXPIRED_THREADS)).fetchall()
        if not rows:
            return 0
        return len(await threads.delete_rows(conn, [row["thread_id"] for row in rows]))


async def retention(conn: Conn) -> None:
    """Delete what has outlived its use; call it about once a minute."""
    await conn.execute(PURGE)
    await idempotency.expire(conn)
    await webhooks.expire(conn)
    await remote.expire(conn)
    await store.expire(conn)
    await ratelimit.expire(conn)


async def sweep(engine: Engine, conn: Conn, me: UUID, *, urgent: bool = False) -> None:
    """One round of everything, or of what must not wait: with nothing to do that is one statement each.

    What fails is logged and does not hold up the rest.
    """
    duties: dict[str, Callable[[], Awaitable[int]]] = {
        "dead workers": lambda: dead_workers(engine, conn, me),
        "expired leases": lambda: expired_leases(engine, conn),
        "deadlines": lambda: interrupts.time_out(engine),
        "crons": lambda: ticks.fire_due(engine),
    }
    others: dict[str, Callable[[], Awaitable[int]]] = {
        "overdue runs": lambda: overdue.pause_all(engine),
        "expired threads": lambda: expired_threads(conn),
        "times to live": lambda: prune.expired(conn),
        "orphans": lambda: orphans.cancel_orphans(engine),
    }
    for name, duty in (duties if urgent else duties | others).items():
        try:
            await duty()
        except psycopg.errors.LockNotAvailable:
            log.debug("locked, left for the next round", duty=name)
        except Exception:  # the edge of a background loop
            log.exception("sweep failed", duty=name)
