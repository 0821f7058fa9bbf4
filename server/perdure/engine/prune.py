"""Pruning: threads go, or their old checkpoints; asked for by a client, or because their time is over.

A thread is pruned under its lock, without an active run and under a new fence, so nobody writes
what is being removed. What a state consists of is LangGraph's affair; kept is what its next run
reads, and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString
from uuid import UUID

import structlog

from perdure.engine import access, threads
from perdure.engine.access import Within
from perdure.engine.db import Conn
from perdure.engine.errors import Conflict, ThreadBusy
from perdure.engine.ttl import Strategy

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

BATCH = 200  # threads that one transaction deletes

EXISTING = """
SELECT thread_id FROM threads
 WHERE thread_id = ANY(%(ids)s) AND (%(within)s::jsonb IS NULL OR metadata @> %(within)s) ORDER BY thread_id
"""
BUSY = """
SELECT t.thread_id FROM threads t
 WHERE t.thread_id = ANY(%(ids)s)
   AND (t.run_id IS NOT NULL OR EXISTS (
           SELECT 1 FROM runs r WHERE r.thread_id = t.thread_id
              AND r.status IN ('pending', 'running', 'suspended', 'paused')))
 ORDER BY t.thread_id LIMIT 1
"""


async def prune(engine: Engine, thread_ids: list[UUID], strategy: Strategy, *, within: Within = None) -> int:
    """Delete threads, or all their checkpoints but the newest of each graph; returns how many existed.

    `delete` stops active runs, as deleting a thread does; `keep_latest` refuses before it has changed
    anything if a thread has one (ThreadBusy), or if its states cannot be told apart (Conflict). Each
    thread, or batch of threads to delete, is a transaction: a call that was cut short may be repeated.
    """
    async with engine.pool.connection() as conn:
        params = {"ids": thread_ids, "within": access.parameter(within)}
        rows = await (await conn.execute(EXISTING, params)).fetchall()
        ids: list[UUID] = [row["thread_id"] for row in rows]
        if strategy == "delete":
            return await _delete(conn, ids)
        busy = await (await conn.execute(BUSY, {"ids": ids})).fetchone()
        if busy is not None:
            raise _busy(busy["thread_id"])
        await _refuse_deltas(conn, ids)
        for thread_id in ids:
            async with conn.transaction():
                await threads.take(conn, thread_id, busy=_busy(thread_id))
                await keep_latest(conn, thread_id)
    return len(ids)


def _busy(thread_id: UUID) -> ThreadBusy:
    return ThreadBusy(f"Thread {thread_id} has an active run; wait for it or cancel it before you prune the thread")


async def _delete(conn: Conn, ids: list[UUID]) -> int:
    count = 0
    for start in range(0, len(ids), BATCH):
        async with conn.transaction():
            count += len(await threads.delete_rows(conn, ids[start : start + BATCH]))
    return count


# A DeltaChannel's state is spread over the writes of many checkpoints. It leaves counters in their
# metadata, or the mark of a snapshot: `true` where the value would stand, and a blob beside it.
DELTAS = """
SELECT c.thread_id FROM checkpoints c
 WHERE c.thread_id = ANY(%(threads)s)
   AND (c.metadata ?| '{counters_since_delta_snapshot,delta_writes_versioned}' OR EXISTS (
           SELECT 1 FROM jsonb_each(c.checkpoint -> 'channel_values') v
             JOIN checkpoint_blobs b
               ON b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = v.key
              AND b.version = c.checkpoint -> 'channel_versions' ->> v.key
            WHERE v.value = 'true'::jsonb))
 LIMIT 1
"""


async def _refuse_deltas(conn: Conn, ids: list[UUID]) -> None:
    row = await (await conn.execute(DELTAS, {"threads": [str(one) for one in ids]})).fetchone()
    if row is not None:
        raise Conflict(
            f"Thread {row['thread_id']} stores a channel as changes (DeltaChannel): its newest state needs the older "
            "checkpoints. Delete the thread, or keep it as it is"
        )


# The newest checkpoint of each namespace. A subgraph that was called by a task has a namespace of its
# own (with a colon), which is needed only as long as the root's newest checkpoint is the one that
# called it; one with a checkpointer of its own has a name only, and goes on with its newest state.
# Before version 4 of the format a checkpoint took what was sent to it from its parent.
DELETE_CHECKPOINTS = """
WITH newest AS (
    SELECT DISTINCT ON (checkpoint_ns) checkpoint_ns, checkpoint_id, parent_checkpoint_id,
           (checkpoint ->> 'v')::int AS v, metadata -> 'parents' ->> '' AS root
      FROM checkpoints WHERE thread_id = %(thread)s
     ORDER BY checkpoint_ns DESC, checkpoint_id DESC
), needed AS (
    SELECT * FROM newest
     WHERE position(':' IN checkpoint_ns) = 0 OR root IS NULL
        OR root = (SELECT checkpoint_id FROM newest WHERE checkpoint_ns = '')
), kept AS (
    SELECT checkpoint_ns, checkpoint_id FROM needed
    UNION ALL
    SELECT checkpoint_ns, parent_checkpoint_id FROM needed WHERE v < 4 AND parent_checkpoint_id IS NOT NULL
)
DELETE FROM checkpoints
 WHERE thread_id = %(thread)s AND (checkpoint_ns, checkpoint_id) NOT IN (SELECT checkpoint_ns, checkpoint_id FROM kept)
   AND (%(run)s::text IS NULL OR metadata ->> 'run_id' = %(run)s)
"""
# Then what belongs to none of those that are left; rows are looked up by primary key, one by one.
DELETE_REST: tuple[LiteralString, ...] = (
    """
    DELETE FROM checkpoint_writes w
     WHERE w.thread_id = %(thread)s AND NOT EXISTS (
           SELECT 1 FROM checkpoints c WHERE c.thread_id = w.thread_id AND c.checkpoint_ns = w.checkpoint_ns
              AND c.checkpoint_id = w.checkpoint_id)
    """,
    """
    DELETE FROM checkpoint_blobs b
     WHERE b.thread_id = %(thread)s AND NOT EXISTS (
           SELECT 1 FROM checkpoints c WHERE c.thread_id = b.thread_id AND c.checkpoint_ns = b.checkpoint_ns
              AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version)
    """,
    """
    UPDATE checkpoints c SET parent_checkpoint_id = NULL
     WHERE c.thread_id = %(thread)s AND c.parent_checkpoint_id IS NOT NULL AND NOT EXISTS (
           SELECT 1 FROM checkpoints p WHERE p.thread_id = c.thread_id AND p.checkpoint_ns = c.checkpoint_ns
              AND p.checkpoint_id = c.parent_checkpoint_id)
    """,
)
PRUNED = "UPDATE threads SET pruned_at = now() WHERE thread_id = %(thread_id)s"


async def keep_latest(conn: Conn, thread_id: UUID) -> None:
    """Delete all checkpoints of a thread but the newest. Part of the caller's transaction, which has taken the thread.

    Its past cannot be shown or forked any more, nor large `values` frames of old streams. Raises
    Conflict where the newest state needs the older checkpoints.
    """
    await _refuse_deltas(conn, [thread_id])
    for statement in (DELETE_CHECKPOINTS, *DELETE_REST):
        await conn.execute(statement, {"thread": str(thread_id), "run": None})
    await conn.execute(PRUNED, {"thread_id": thread_id})


# What the run left first takes the place of the first checkpoint that it made.
PARENT = """
UPDATE checkpoints c SET parent_checkpoint_id = first.parent_checkpoint_id
  FROM (SELECT parent_checkpoint_id FROM checkpoints
         WHERE thread_id = %(thread)s AND checkpoint_ns = '' AND metadata ->> 'run_id' = %(run)s
         ORDER BY checkpoint_id LIMIT 1) first
 WHERE c.thread_id = %(thread)s AND c.checkpoint_ns = '' AND c.metadata ->> 'run_id' = %(run)s
   AND c.checkpoint_id = (SELECT max(l.checkpoint_id) FROM checkpoints l
                           WHERE l.thread_id = %(thread)s AND l.checkpoint_ns = '')
"""


async def keep_last_of(conn: Conn, thread_id: UUID, run_id: UUID) -> None:
    """Delete the checkpoints of a run but its last, which is the thread's newest: `durability: exit`.

    Until its end the run keeps them all: it goes on from them after a crash. Part of the transaction that ends it.
    Where a later state needs them (DeltaChannel) they stay.
    """
    keys = {"thread": str(thread_id), "run": str(run_id)}
    if await (await conn.execute(DELTAS, {"threads": [keys["thread"]]})).fetchone() is None:
        for statement in (PARENT, DELETE_CHECKPOINTS, *DELETE_REST):
            await conn.execute(statement, keys)


# The first condition is that of threads_ttl_idx; a thread that was pruned is not due again before its next update.
DUE = """
SELECT thread_id FROM threads t
 WHERE ttl IS NOT NULL AND (ttl_strategy = 'delete' OR pruned_at IS NULL OR pruned_at < updated_at)
   AND (updated_at AT TIME ZONE 'UTC') + ttl < now() AT TIME ZONE 'UTC'
   AND ttl_strategy = %(strategy)s AND run_id IS NULL AND NOT EXISTS (
       SELECT 1 FROM runs r WHERE r.thread_id = t.thread_id
          AND r.status IN ('pending', 'running', 'suspended', 'paused'))
 ORDER BY (updated_at AT TIME ZONE 'UTC') + ttl LIMIT %(limit)s
   FOR UPDATE SKIP LOCKED
"""


async def expired(conn: Conn) -> int:
    """Delete or prune threads whose time to live is over; returns how many. Any number of callers at once.

    At most BATCH are deleted, in one transaction, and at most BATCH pruned, each in its own.
    """
    async with conn.transaction():
        gone = await (await conn.execute(DUE, {"strategy": "delete", "limit": BATCH})).fetchall()
        if gone:
            await threads.delete_rows(conn, [row["thread_id"] for row in gone])
    count = len(gone)
    for _ in range(BATCH):
        if not await _prune_next(conn):
            break
        count += 1
    return count


async def _prune_next(conn: Conn) -> bool:
    async with conn.transaction():
        row = await (await conn.execute(DUE, {"strategy": "keep_latest", "limit": 1})).fetchone()
        if row is None:
            return False
        thread_id: UUID = row["thread_id"]
        await threads.take(conn, thread_id, busy=_busy(thread_id))
        try:
            await keep_latest(conn, thread_id)
        except Conflict as exc:
            log.warning("thread not pruned at the end of its time to live", error=str(exc))
            await conn.execute(PRUNED, {"thread_id": thread_id})
    return True
